"""Batch normalisation (Ioffe and Szegedy 2015) over groups of examples that the model names.

Which examples share their statistics is the network's mathematics, so it is said here and not by
how many devices there are: ``group`` examples in the order of the batch, or the whole global batch.
Where a plan cuts a group over ranks, by examples or by rows and columns, the layer falls in two:

    moments   of each rank's part of each group: how many values, their mean, the sum of squared
              distances from it
    apply     reads the moments of all parts, puts them together (Chan, Golub, LeVeque 1979), and
              normalises

What is exchanged in between are three values a channel, group and pair of ranks,
and their gradients.

Running averages of mean and variance are kept for evaluation, as torch's ``BatchNorm`` keeps them.
Each part tells its share of the batch's, by its positions among those of the whole global batch;
shares are summed with the gradients of weight and bias, by the same ops.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Annotated, ClassVar

from orchestrator.errors import InputError
from orchestrator.models.box import Box
from orchestrator.models.fields import Bounds, Count
from orchestrator.models.layer import Cut, Layer, Statistics
from orchestrator.models.layer_costs import LayerMemory
from orchestrator.models.parameter import Constant, ParameterSpec, RunningAverage
from orchestrator.models.ranges import Ranges, normalise
from orchestrator.models.sized import LayerPart, SizedLayer
from orchestrator.models.value import Value

if TYPE_CHECKING:
    from torch import Tensor

    from orchestrator.models.layer import NamedTensors, Tensors
    from orchestrator.models.randomness import Draw

MOMENTS = 3  # number of values, mean, sum of squared distances from the mean


@dataclass(frozen=True, kw_only=True)
class BatchNorm(Layer):
    """Each channel less its mean, over its standard deviation, times a weight, plus a bias.

    In training mean and variance are those of the group that an example is in; in evaluation they
    are the running averages, ``running_mean`` and ``running_var``::

        running <- (1 - momentum) running + momentum found        at each update of the weights

    What is found in a batch is the mean over its groups of the group's mean, and of its unbiased
    variance (over n - 1 of its n values a channel). With ``group=None`` that is what
    ``torch.nn.BatchNorm2d`` does.

    The running averages are held, saved, restored and reduced with the gradients, so where several
    ranks share the layer, twice its channels of gradient bytes are theirs; they are not trained,
    and no parameters of the network.

    Args:
        group: examples that share their statistics, in the order of the batch; None for all of the
            global batch.
        eps: added to the variance.
        weight: what the weights start from; residual networks take 0 in a block's last norm.
        momentum: weight of the newest batch in the running averages.
    """

    group: Count | None = None
    eps: Annotated[float, Bounds(0)] = 1e-5
    weight: float = 1.0
    momentum: Annotated[float, Bounds(0, 1, above=True)] = 0.1
    kind: ClassVar[str] = "batch_norm"
    drawn: ClassVar[str] = "norm"

    def output(self, *inputs: Value) -> Value:
        (value,) = inputs
        if "token" in value.axes or value.integer:
            raise InputError(
                f"layer {self.name}: batch norm reads images and vectors, not {value.shape}",
                remedy="LayerNorm or RMSNorm for sequences",
            )
        return value

    def parameters(self, *inputs: Value) -> tuple[ParameterSpec, ...]:
        shape, axes = (inputs[0].channels,), ("channel",)
        average = RunningAverage(self.momentum)
        return (
            ParameterSpec("weight", shape, Constant(self.weight), axes, decays=False),
            ParameterSpec("bias", shape, Constant(0.0), axes, decays=False),
            ParameterSpec("running_mean", shape, Constant(0.0), axes, update=average),
            ParameterSpec("running_var", shape, Constant(1.0), axes, update=average),
        )

    def statistics(self, sized: SizedLayer, cut: Cut) -> Statistics | None:
        if cut.evaluating:
            return None
        group = self.group or cut.global_batch
        self._check(group, cut)
        if group * prod(sized.output.shape[1:]) == 1:
            raise InputError(
                f"{self.name}: the variance of one value a channel is not defined, and its groups "
                "have no more",
                remedy="BatchNorm(group=...) of two or more, or LayerNorm",
            )
        ends = {end for ranges in cut.batches for pair in ranges for end in pair}
        inside = [axis for axis in sized.output.axes if axis != "channel" and axis in cut.counts]
        if not inside and all(end % group == 0 for end in ends):
            return None
        axes = tuple(axis for axis in ("batch", *inside) if axis in cut.counts)
        parts = prod(cut.counts[axis] for axis in axes)
        moments = f"{self.name}.moments"
        return Statistics(
            axes,
            BatchMoments(name=moments, inputs=sized.sources, group=group, parts=parts),
            BatchApply(
                name=self.name, inputs=(*sized.sources, moments), group=group, parts=parts,
                eps=self.eps, weight=self.weight, momentum=self.momentum,
            ),
            MOMENTS,
        )  # fmt: skip

    def _check(self, group: int, cut: Cut) -> None:
        if cut.chunk % group == 0 and cut.replica_batch % group == 0:
            return
        what = f"groups of {group}" if self.group else f"the whole batch of {group}"
        another = "or, as another network, BatchNorm(group=...) of a size that divides "
        another += f"{min(cut.chunk, cut.replica_batch)}"
        if cut.global_batch % group:
            raise InputError(
                f"{self.name}: its statistics are over {what} examples, which do not divide the "
                f"batch of {cut.global_batch}",
                remedy=f"a global_batch_size that is a multiple of {group}; {another}",
            )
        if cut.replica_batch % group:
            how, remedy = f"replicas of {cut.replica_batch}", "split: batch in place of replicas"
        else:
            how = f"microbatches or turns of {cut.chunk}"
            remedy = f"n_microbatches: {cut.replica_batch // group}, without turns "
            remedy += "(exchange: gather, no layer_batch)"
        raise InputError(
            f"{self.name}: its statistics are over {what} examples, which {how} tear apart",
            remedy=f"{remedy}; {another}",
        )

    def memory(self, part: LayerPart, examples: int, itemsize: int) -> LayerMemory:
        before, after = part.bytes(examples, itemsize)
        groups = -(-examples // (self.group or examples))
        statistics = (groups + 1) * part.running_values * itemsize  # of each group; the shares
        # Groups are put together. The backward makes room for the input's gradient twice.
        return LayerMemory(
            before, after, saves_input=True, saved=statistics,
            forward_extra=after if groups > 1 else 0, backward_extra=before // groups,
            weights=part.parameters * itemsize,
        )  # fmt: skip

    def compute(
        self, part: LayerPart, inputs: Tensors, parameters: Tensors, draw: Draw | None
    ) -> Tensor:
        import torch
        import torch.nn.functional as nnf

        x, (weight, bias, *running) = inputs[0], parameters
        if draw is None:
            mean, variance = (average.detach() for average in running)
            return nnf.batch_norm(x, mean, variance, weight, bias, eps=self.eps)

        from orchestrator.models.running_torch import tell

        shares = [torch.zeros_like(average) for average in running]
        groups = []
        for rows in x.split(self.group or len(x)):
            mean, variance = (torch.zeros_like(share) for share in shares)
            groups.append(
                nnf.batch_norm(
                    rows, mean, variance, weight, bias, training=True, eps=self.eps,
                    momentum=1.0,  # so that they become this group's
                )
            )  # fmt: skip
            for share, found in zip(shares, (mean, variance), strict=True):
                share.add_(found, alpha=len(rows) / draw.batch)
        return tell(groups[0] if len(groups) == 1 else torch.cat(groups), running, shares)

    def whole(
        self, sized: SizedLayer, inputs: Tensors, parameters: NamedTensors, draw: Draw | None
    ) -> Tensor:
        """By torch's module, which updates ``running_mean`` and ``running_var`` in training: one
        group after the other from the same values, and then the mean of what they have become."""
        import torch
        from torch import nn
        from torch.func import functional_call

        (given,) = inputs
        x = given.flatten(2) if given.dim() > 4 else given
        kind = nn.BatchNorm2d if x.dim() == 4 else nn.BatchNorm1d
        module = kind(x.shape[1], self.eps, self.momentum).train(draw is not None)
        running = {name: parameters[name].detach() for name in sized.running}
        # torch takes weights in the averages' format alone, which may have more bits than x
        wide = {name: parameters[name].to(running["running_mean"].dtype) for name in parameters}
        parameters = {**wide, **running}
        if draw is None:
            return functional_call(module, {**parameters, **running}, (x,)).view_as(given)  # type: ignore[no-any-return]
        outputs, ends = [], []
        for rows in x.split(self.group or len(x)):
            ends.append({name: average.clone() for name, average in running.items()})
            outputs.append(functional_call(module, {**parameters, **ends[-1]}, (rows,)))
        for name, average in running.items():
            average.copy_(torch.stack([end[name] for end in ends]).mean(0))
        return torch.cat(outputs).view_as(given)


@dataclass(frozen=True, kw_only=True)
class BatchMoments(Layer):
    """The moments of a part of each group; placed by the compiler.

    (channels, parts x moments): a part gives its own, of every channel that it has.
    """

    group: int
    parts: int
    kind: ClassVar[str] = "batch_moments"
    has_rows: ClassVar[bool] = True

    def output(self, *inputs: Value) -> Value:
        shape = (inputs[0].channels, self.parts * MOMENTS)
        return Value(shape, ("channel", "moment"))

    def reads(self, sized: SizedLayer, out: Box) -> tuple[Box, ...]:
        return ((out[0], *sized.inputs[0].whole[1:]),)

    def gathered(self, sized: SizedLayer, reads: Box, positions: Ranges) -> Box:
        return (reads[0], positions)

    def rows(self, batch: Ranges) -> Ranges:
        return _firsts(batch, self.group)

    def memory(self, part: LayerPart, examples: int, itemsize: int) -> LayerMemory:
        before, _ = part.bytes(examples, itemsize)
        after = part.written_values * -(-examples // self.group) * itemsize
        each = before // -(-examples // self.group)
        # Of each group a copy with the channels first, the distances from the mean, which are kept,
        # and their squares. The squares' backward needs three tensors; before it has done the last
        # group, all other distances are gone.
        return LayerMemory(
            before, after, saved=before, forward_extra=2 * each,
            backward_extra=max(0, 3 * each - before),
        )  # fmt: skip

    def compute(
        self, part: LayerPart, inputs: Tensors, parameters: Tensors, draw: Draw | None
    ) -> Tensor:
        import torch

        assert draw is not None, "batch moments are of a training step"
        (x,) = inputs
        found = []
        for rows in x.split(_sizes(draw, self.group)):
            values = rows.transpose(0, 1).flatten(1)
            mean = values.mean(1)
            spread = (values - mean[:, None]).square().sum(1)
            count = torch.full_like(mean, values.shape[1])
            found.append(torch.stack((count, mean, spread), 1))
        return torch.stack(found)


@dataclass(frozen=True, kw_only=True)
class BatchApply(BatchNorm):
    """Normalises by the moments of all parts; placed by the compiler."""

    parts: int
    input_count: ClassVar[int | None] = 2
    has_rows: ClassVar[bool] = True

    def reads(self, sized: SizedLayer, out: Box) -> tuple[Box, ...]:
        return (out, (out[0], ((0, self.parts * MOMENTS),)))

    def input_rows(self, number: int, batch: Ranges) -> Ranges:
        assert self.group is not None
        return _firsts(batch, self.group) if number else batch

    def statistics(self, sized: SizedLayer, cut: Cut) -> Statistics | None:
        return None

    def memory(self, part: LayerPart, examples: int, itemsize: int) -> LayerMemory:
        _, after = part.bytes(examples, itemsize)
        assert self.group is not None
        groups = -(-examples // self.group)
        return LayerMemory(
            after, after, saves_input=True,
            # of each group a factor and two of its moments, and the shares
            saved=(3 * groups + 2) * part.running_values // 2 * itemsize,
            forward_extra=after, backward_extra=after, weights=part.parameters * itemsize,
        )  # fmt: skip

    def compute(
        self, part: LayerPart, inputs: Tensors, parameters: Tensors, draw: Draw | None
    ) -> Tensor:
        import torch

        from orchestrator.models.running_torch import tell

        assert draw is not None, "batch moments are of a training step"
        assert self.group is not None
        x, gathered = inputs
        weight, bias, *running = parameters
        count, mean, variance = combined(gathered)
        factor = (variance + self.eps).rsqrt() * weight
        shift = bias - mean * factor
        sizes = torch.tensor(_sizes(draw, self.group), device=x.device)
        # this part's positions of each group, among those of the global batch
        each = x[0, 0].numel() / (prod(part.sized.output.shape[1:]) * draw.batch)
        of_batch = sizes.to(x.dtype) * each
        unbiased = variance * (count / (count - 1))
        shares = [of_batch @ mean.detach(), of_batch @ unbiased.detach()]
        factor, shift = (t.repeat_interleave(sizes, 0) for t in (factor, shift))
        shape = (*factor.shape, *[1] * (x.dim() - 2))
        return tell(x * factor.view(shape) + shift.view(shape), running, shares)


def combined(gathered: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Number, mean and variance of the whole's values from the moments of its parts.

    Args:
        gathered: (..., parts x moments); a part without values has zeros.
    """
    count, mean, spread = gathered.unflatten(-1, (-1, MOMENTS)).unbind(-1)
    total = count.sum(-1)
    overall = (count * mean).sum(-1) / total
    distance = (mean - overall[..., None]).square()
    return total, overall, (spread + count * distance).sum(-1) / total


def _firsts(batch: Ranges, group: int) -> Ranges:
    """The first example of each group that some examples belong to."""
    numbers = sorted({n for a, b in batch for n in range(a // group, (b - 1) // group + 1)})
    return normalise((n * group, n * group + 1) for n in numbers)


def _sizes(draw: Draw, group: int) -> list[int]:
    """How many of the examples belong to each group, in order."""
    import torch

    counts = torch.unique_consecutive(draw.samples // group, return_counts=True)[1]
    return [int(n) for n in counts]
