"""One device, no program: the whole network, ordinary autograd over the whole batch, one update.

What every plan has to agree with. It is made of torch's own modules (:meth:`Layer.whole`), not of
the functions that the parts are computed with, so a layer whose part is wrong is found, too. Those
keep their running averages themselves. It shares with the executors the initial values and the
masks of dropout.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from orchestrator.execute.interpreter import Feed
from orchestrator.execute.parameters import TORCH_DTYPE, initial_parameter
from orchestrator.execute.recording import Recorder
from orchestrator.models.model import Model, Recipe
from orchestrator.models.parameter import RunningAverage
from orchestrator.models.randomness import Draw
from orchestrator.models.sized import SizedLayer
from orchestrator.models.value import INPUT, LABELS
from orchestrator.program.precision import Precision

Values = dict[str, Tensor]  # by the name of the layer that makes it


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
        dtype: str | Precision,
        update_examples: Mapping[str, int],
    ) -> None:
        self.model, self.feed, self.recipe = model, feed, recipe
        precision = Precision.of(dtype) if isinstance(dtype, str) else dtype
        self.global_batch, self.dtype = global_batch, TORCH_DTYPE[precision.compute]
        updated = TORCH_DTYPE[precision.updated]
        self.update_examples = dict(update_examples)
        # by layer, and first example of a slice
        self.recorder: Recorder[tuple[str, int]] | None = None
        self.weights: dict[str, Tensor] = {}
        decays: list[bool] = []
        self.tied: dict[str, str] = {}
        self.running: dict[str, RunningAverage] = {}  # updated by torch's modules themselves
        for sized in model.layers:
            for spec in sized.specs:
                name = f"{sized.name}.{spec.name}"
                if spec.tied_to:
                    self.tied[name] = spec.tied_to
                    continue
                start = initial_parameter(sized, spec, recipe.seed).to(updated)
                if spec.update is not None:
                    self.weights[name], self.running[name] = start, spec.update
                    continue
                self.weights[name] = start.requires_grad_()
                decays.append(spec.decays)
        self.names = [name for name in self.weights if name not in self.running]
        self.largest_gradient = 0.0  # of any value in any step
        self.updates = recipe.updates.reference([self.weights[name] for name in self.names], decays)

    def step(self, step: int) -> float:
        """One training step; returns the mean loss over the global batch."""
        samples = torch.arange(self.global_batch)
        images = self.feed.images(step, samples)
        if not self.model.input.integer:
            images = images.to(self.dtype)
        values = {INPUT: images, LABELS: self.feed.labels(step, samples)}
        names = [layer.name for layer in self.model.layers]
        small = [i for i, name in enumerate(names) if name in self.update_examples]
        if small:
            return self._step_in_slices(small[0], values, step, samples)
        loss = self._through(values, range(len(names)), step, samples)
        self._update(range(len(names)), loss, 1.0)
        return float(loss.detach())

    def evaluate(self, images: Tensor) -> Tensor:
        """Class scores of any examples, as at test time: (n, classes), or (n, tokens, classes)."""
        values = {INPUT: images}
        with torch.no_grad():
            self._compute(values, range(len(self.model.layers) - 1), None)
        return values[self.model.layers[-2].name]

    def _step_in_slices(self, cut: int, values: Values, step: int, samples: Tensor) -> float:
        """Layers from ``cut`` on see the batch in slices and are updated after each."""
        layers = self.model.layers
        sizes = {self.update_examples[layer.name] for layer in layers[cut:-1]}
        assert len(sizes) == 1, "one slice size for all layers that have one"
        size = sizes.pop()
        self._through(values, range(cut), step, samples)
        read = {source for layer in layers[cut:] for source in layer.sources}
        crossing = {name: x for name, x in values.items() if name in read}
        trained = [name for name, x in crossing.items() if x.requires_grad]
        gradients = {name: torch.zeros_like(crossing[name]) for name in trained}
        total = 0.0
        for start in range(0, self.global_batch, size):
            rows = slice(start, start + size)
            leaves = {name: x[rows].detach() for name, x in crossing.items()}
            inputs = [leaves[name].requires_grad_() for name in trained]
            loss = self._through(leaves, range(cut, len(layers)), step, samples[rows])
            found = torch.autograd.grad(loss, inputs, retain_graph=True)
            for name, gradient in zip(trained, found, strict=True):
                gradients[name][rows] = gradient
            self._update(range(cut, len(layers)), loss, self.global_batch / size)
            total += float(loss.detach())
        behind = sum((crossing[name] * gradients[name]).sum() for name in trained)
        assert isinstance(behind, Tensor)
        self._update(range(cut), behind, 1.0)
        return total

    def _through(self, values: Values, span: range, step: int, samples: Tensor) -> Tensor:
        """Compute some layers; returns the last one's output, the loss as a mean."""
        self._compute(values, span, Draw(self.recipe.seed, step, samples, self.global_batch))
        last = values[self.model.layers[span[-1]].name]
        if self.model.layers[span[-1]].layer.is_loss:
            return last / (self.global_batch * self.model.predictions)
        return last

    def _compute(self, values: Values, span: range, draw: Draw | None) -> None:
        for i in span:
            sized = self.model.layers[i]
            named = {
                spec.name: self.weights[self._owner(f"{sized.name}.{spec.name}")]
                for spec in sized.specs
            }
            # of a master, rounded, but for what the layer updates itself; the gradient of a master
            # is that of the rounded weight
            named |= {n: x.to(self.dtype) for n, x in named.items() if n not in sized.running}
            inputs = [values[source] for source in sized.sources]
            values[sized.name] = self._whole(sized, inputs, named, draw)

    def _whole(
        self, sized: SizedLayer, inputs: list[Tensor], named: dict[str, Tensor], draw: Draw | None
    ) -> Tensor:
        if self.recorder is None or draw is None:
            return sized.whole(inputs, named, draw)
        key = (sized.name, int(draw.samples[0]))
        inputs, parameters = self.recorder.reads(key, inputs, list(named.values()))
        named = dict(zip(named, parameters, strict=True))
        before = {name: named[name].clone() for name in sized.running}
        y = sized.whole(inputs, named, draw)
        for number, spec in enumerate(sized.specs):
            if spec.update is not None:  # what was found, from what it has made of the average
                m = spec.update.momentum
                found = (named[spec.name] - (1 - m) * before[spec.name]) / m
                share = found * (len(draw.samples) / self.global_batch)
                self.recorder.passes[key].parameter_gradients[number] = share
        return self.recorder.gives(key, y)

    def _owner(self, name: str) -> str:
        return self.tied.get(name, name)

    def _update(self, span: range, loss: Tensor, scale: float) -> None:
        names = [
            f"{layer.name}.{spec.name}"
            for layer in (self.model.layers[i] for i in span)
            for spec in layer.specs
            if not spec.tied_to and spec.update is None
        ]
        weights = [self.weights[n] for n in names]
        gradients = torch.autograd.grad(loss, weights, materialize_grads=True)
        by_number = {
            self.names.index(name): gradient * scale
            for name, gradient in zip(names, gradients, strict=True)
        }
        largest = (float(g.abs().max()) for g in by_number.values() if g.numel())
        self.largest_gradient = max(self.largest_gradient, *largest)
        self.updates.step(by_number, self.recipe.lr)

    def blown_up(self, steps: int) -> dict[str, Tensor]:
        """By parameter, what a change of its gradients by the largest of any comes to, at most, in
        so many steps; of those alone that are not changed in proportion to their gradients."""
        found = {}
        for number, name in enumerate(self.names):
            amplified = self.updates.amplification(number)
            if amplified is not None:
                found[name] = steps * self.recipe.lr * self.largest_gradient * amplified
        return found
