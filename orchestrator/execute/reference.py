"""One device, no program: the whole network, ordinary autograd over the whole batch, one update.

What every plan has to agree with. It shares with the executors the layers' arithmetic
(:func:`~orchestrator.models.torch_layers.apply_layer`) and the initial weights, and nothing of
placement, segments, schedules or transports. So it is independent evidence about splits and none
about layers.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from orchestrator.execute.interpreter import Feed
from orchestrator.execute.parameters import TORCH_DTYPE, update
from orchestrator.models.layers import CrossEntropy
from orchestrator.models.model import Model, Recipe
from orchestrator.models.torch_layers import Draw, apply_layer, initial_weight, loss_sum


class Reference:
    """The model on one device.

    Args:
        update_examples: by layer name, the examples after which it is updated, where that is less
            than the global batch (the recipe's variable batch size).
    """

    def __init__(
        self,
        model: Model,
        feed: Feed,
        recipe: Recipe,
        *,
        global_batch: int,
        dtype: str,
        update_examples: Mapping[str, int],
    ) -> None:
        self.model, self.feed, self.recipe = model, feed, recipe
        self.global_batch, self.dtype = global_batch, TORCH_DTYPE[dtype]
        self.update_examples = dict(update_examples)
        self.weights: dict[str, Tensor] = {}
        self.velocities: dict[str, Tensor] = {}
        for sized in model.layers:
            if sized.has_weights:
                bias = torch.full((sized.out_channels,), float(sized.layer.initial_bias()))
                start = {"weight": initial_weight(sized, recipe.seed), "bias": bias}
                for part, value in start.items():
                    weight = value.to(self.dtype).requires_grad_()
                    self.weights[f"{sized.name}.{part}"] = weight
                    self.velocities[f"{sized.name}.{part}"] = torch.zeros_like(weight)

    def step(self, step: int) -> float:
        """One training step; returns the mean loss over the global batch."""
        samples = torch.arange(self.global_batch)
        images = self.feed.images(step, samples).to(self.dtype)
        labels = self.feed.labels(step, samples)
        names = [layer.name for layer in self.model.layers]
        small = [i for i, name in enumerate(names) if name in self.update_examples]
        cut = small[0] if small else len(names)
        if not small:
            loss = self._through(images, range(cut), step, samples, labels)
            self._update(range(cut), loss, 1.0)
            return float(loss.detach())
        return self._step_in_slices(cut, images, step, samples, labels)

    def _step_in_slices(
        self, cut: int, images: Tensor, step: int, samples: Tensor, labels: Tensor
    ) -> float:
        """Layers from ``cut`` on see the batch in slices and are updated after each."""
        names = [layer.name for layer in self.model.layers]
        sizes = {self.update_examples[n] for n in names[cut:-1]}
        assert len(sizes) == 1, "one slice size for all layers that have one"
        size = sizes.pop()
        features = self._through(images, range(cut), step, samples, labels)
        gradient = torch.zeros_like(features)
        total = 0.0
        for start in range(0, self.global_batch, size):
            rows = slice(start, start + size)
            x = features[rows].detach().requires_grad_()
            loss = self._through(x, range(cut, len(names)), step, samples[rows], labels[rows])
            (gradient[rows],) = torch.autograd.grad(loss, x, retain_graph=True)
            self._update(range(cut, len(names)), loss, self.global_batch / size)
            total += float(loss.detach())
        self._update(range(cut), (features * gradient).sum(), 1.0)
        return total

    def _through(
        self, x: Tensor, span: range, step: int, samples: Tensor, labels: Tensor
    ) -> Tensor:
        draw = Draw(self.recipe.seed, step, samples)
        for i in span:
            sized = self.model.layers[i]
            if isinstance(sized.layer, CrossEntropy):
                return loss_sum(sized.layer, x, labels) / self.global_batch
            out, reads = ((0, sized.out_channels),), ((0, sized.in_channels),)
            weights = [self.weights[f"{sized.name}.weight"]] if sized.has_weights else []
            x = apply_layer(
                sized, x, out=out, reads=reads, weights=weights,
                bias=self.weights.get(f"{sized.name}.bias"), bias_channels=out, draw=draw,
            )  # fmt: skip
        return x

    def _update(self, span: range, loss: Tensor, scale: float) -> None:
        names = [
            f"{self.model.layers[i].name}.{part}"
            for i in span
            if self.model.layers[i].has_weights
            for part in ("weight", "bias")
        ]
        gradients = torch.autograd.grad(loss, [self.weights[n] for n in names])
        with torch.no_grad():
            for name, gradient in zip(names, gradients, strict=True):
                update(
                    self.weights[name], self.velocities[name], gradient, self.recipe, scale,
                    decay=name.endswith(".weight"),
                )  # fmt: skip
