"""The other side: the same networks as plain PyTorch modules, trained by PyTorch's own means.

Everything that is a choice is chosen in PyTorch's favour: SGD is fused, gradient buckets are
views, the loss is scaled once instead of every gradient, pipeline outputs are not merged, and
whatever it does once (agreeing on shapes, first buckets) happens before the clock starts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from math import prod

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import PipelineScheduleSingle, get_schedule_class
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

from benchmarks.our_side import Setting
from benchmarks.pairing import CHECK_STEPS
from orchestrator.execute.parameters import initial_parameter
from orchestrator.models import Conv, Dropout, Linear, MaxPool, Recipe, ResponseNorm, SizedLayer
from orchestrator.models.randomness import Draw, keep_mask

CPU = torch.device("cpu")


# -- layers ---------------------------------------------------------------------------------------


class SharedMaskDropout(nn.Dropout):
    """``torch.nn.Dropout``, but with our masks while some are laid out: for comparing losses."""

    def __init__(self, sized: SizedLayer, p: float) -> None:
        super().__init__(p)
        self.sized = sized
        self.draws: deque[Draw] = deque()

    def forward(self, x: Tensor) -> Tensor:
        if not self.draws:
            return super().forward(x)
        everything, draw = self.sized.output.whole, self.draws.popleft()
        return x * keep_mask(self.sized.name, self.sized.output_shape, everything, self.p, draw, x)


class ColumnNorm(nn.Module):
    """``torch.nn.LocalResponseNorm`` in each column of channels for itself, without a copy."""

    def __init__(self, layer: ResponseNorm) -> None:
        super().__init__()
        self.columns = layer.columns
        self.norm = nn.LocalResponseNorm(layer.window, layer.alpha, layer.beta, layer.k)

    def forward(self, x: Tensor) -> Tensor:
        n, channels, *image = x.shape
        columns = x.view(n * self.columns, channels // self.columns, *image)
        normed: Tensor = self.norm(columns)
        return normed.view(x.shape)


class OurNorm(nn.Module):
    """Our response norm as a module."""

    def __init__(self, sized: SizedLayer) -> None:
        super().__init__()
        everything = sized.output.whole
        self.part = sized.part(everything, sized.reads(everything))

    def forward(self, x: Tensor) -> Tensor:
        return self.part.sized.layer.compute(self.part, (x,), (), None)


def _module(sized: SizedLayer, seed: int, norm: str) -> nn.Module:
    layer = sized.layer
    if isinstance(layer, Conv):
        before, after = layer.pads
        padding = before if before == after else 0
        conv = nn.Conv2d(
            sized.inputs[0].channels, layer.channels, layer.kernel, layer.stride, padding,
            groups=layer.groups, bias=layer.bias is not None,
        )  # fmt: skip
        _start(conv, sized, seed)
        pad = nn.ZeroPad2d((before, after, before, after))
        return conv if before == after else nn.Sequential(pad, conv)
    if isinstance(layer, Linear):
        linear = nn.Linear(prod(sized.input_shape), layer.features, bias=layer.bias is not None)
        _start(linear, sized, seed)
        return linear if len(sized.input_shape) == 1 else nn.Sequential(nn.Flatten(), linear)
    if isinstance(layer, ResponseNorm):
        return ColumnNorm(layer) if norm == "torch" else OurNorm(sized)
    if isinstance(layer, MaxPool):
        return nn.MaxPool2d(layer.kernel, layer.stride, layer.padding)
    if isinstance(layer, Dropout):
        return SharedMaskDropout(sized, layer.p)
    assert sized.kind == "relu", sized.kind
    return nn.ReLU()


def _start(module: nn.Conv2d | nn.Linear, sized: SizedLayer, seed: int) -> None:
    """Our initial weights."""
    with torch.no_grad():
        for spec in sized.specs:
            module.get_parameter(spec.name).copy_(initial_parameter(sized, spec, seed))


def network(setting: Setting, names: Iterable[str], norm: str) -> nn.Sequential:
    """Some layers of a model in order; the loss is left out.

    Args:
        norm: ``torch`` for ``torch.nn.LocalResponseNorm``, ``ours`` for our response norm.
    """
    built = nn.Sequential()
    for name in names:
        if name != "loss":
            sized = setting.model.layers[setting.model.index[name]]
            built.add_module(name, _module(sized, setting.recipe.seed, norm))
    return built


def sgd(module: nn.Module, recipe: Recipe, *, fused: bool = True) -> torch.optim.Optimizer:
    """``torch.optim.SGD``; biases do not decay.

    Args:
        fused: one pass over the memory; without it, as users get it, several and a temporary.
    """
    named = list(module.named_parameters())
    return torch.optim.SGD(
        [
            {
                "params": [p for n, p in named if n.endswith("weight")],
                "weight_decay": recipe.weight_decay,
            },
            {"params": [p for n, p in named if n.endswith("bias")], "weight_decay": 0.0},
        ],
        lr=recipe.lr,
        momentum=recipe.momentum,
        fused=fused,
    )


def _lay_out_masks(module: nn.Module, recipe: Recipe, number: int, runs: Sequence[Tensor]) -> None:
    """Our masks for the next forwards, one per run of samples; none once the check is over."""
    if number < CHECK_STEPS:
        batch = sum(map(len, runs))
        for dropout in module.modules():
            if isinstance(dropout, SharedMaskDropout):
                dropout.draws = deque(Draw(recipe.seed, number, samples, batch) for samples in runs)


# -- sides ----------------------------------------------------------------------------------------


class PlainRank:
    """A module, a loss, SGD; under DDP each rank has its part of the batch.

    Args:
        wrap: what goes round the module, such as DDP.
        parts, part: into how many parts the batch is cut, and which one is this rank's.
        fused: whether SGD is.
    """

    def __init__(
        self,
        name: str,
        setting: Setting,
        module: nn.Module,
        *,
        wrap: Callable[[nn.Module], nn.Module] = lambda module: module,
        parts: int = 1,
        part: int = 0,
        fused: bool = True,
    ) -> None:
        self.name, self.recipe, self.parts = name, setting.recipe, parts
        batch = setting.plan.global_batch_size
        self.samples = torch.arange(batch).chunk(parts)[part]
        self.feed = setting.feed
        self.module = wrap(module)
        self.optimizer = sgd(self.module, self.recipe, fused=fused)
        self.loss = nn.CrossEntropyLoss()

    def step(self, number: int) -> float:
        _lay_out_masks(self.module, self.recipe, number, [self.samples])
        images = self.feed.images(number, self.samples)
        labels = self.feed.labels(number, self.samples)
        self.optimizer.zero_grad()
        loss = self.loss(self.module(images), labels)
        loss.backward()
        self.optimizer.step()
        return float(loss.detach()) / self.parts


def single(setting: Setting, norm: str, *, fused: bool = True) -> PlainRank:
    """Plain PyTorch on one device."""
    name = "PyTorch, nn.LocalResponseNorm" if norm == "torch" else "PyTorch, our norm"
    name += "" if fused else ", default SGD"
    return PlainRank(name, setting, network(setting, setting.model.index, norm), fused=fused)


def ddp(setting: Setting) -> PlainRank:
    """``DistributedDataParallel`` with our norm."""
    return PlainRank(
        "DDP", setting, network(setting, setting.model.index, "ours"),
        wrap=lambda module: DistributedDataParallel(module, gradient_as_bucket_view=True),
        parts=dist.get_world_size(), part=setting.rank,
    )  # fmt: skip


class TensorParallelRank(PlainRank):
    """DTensor: weights split by ``parallelize_module``; every rank has the batch and the loss."""

    def __init__(self, setting: Setting, styles: dict[str, ParallelStyle]) -> None:
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        super().__init__(
            "DTensor", setting, network(setting, setting.model.index, "ours"),
            wrap=lambda module: parallelize_module(module, mesh, styles),
            fused=False,  # torch 2.13 has no sharding strategy for aten._fused_sgd_
        )  # fmt: skip
        self.tells = setting.rank == 0

    def step(self, number: int) -> float:
        loss = super().step(number)
        return loss if self.tells else 0.0


def columns_dtensor(setting: Setting) -> TensorParallelRank:
    """Every layer on its output features; activations gathered where the next layer reads them."""
    return TensorParallelRank(
        setting,
        {
            "fc6": ColwiseParallel(),
            "fc7": ColwiseParallel(input_layouts=Shard(-1)),
            "fc8": ColwiseParallel(input_layouts=Shard(-1), output_layouts=Replicate()),
        },
    )


def megatron_dtensor(setting: Setting) -> TensorParallelRank:
    """fc6 on its output, fc7 on its input, fc8 on its output."""
    return TensorParallelRank(
        setting,
        {
            "fc6": ColwiseParallel(),
            "fc7": RowwiseParallel(),
            "fc8": ColwiseParallel(output_layouts=Replicate()),
        },
    )


def _stage(
    module: nn.Module, number: int, setting: Setting, stages: list[list[str]]
) -> PipelineStage:
    """A stage with its shapes told, so that it need not run once to find them."""

    def example(shape: tuple[int, ...], *, trained: bool) -> Tensor:
        return torch.empty((setting.plan.microbatch_size, *shape), requires_grad=trained)

    inside = [setting.model.layers[setting.model.index[n]] for n in stages[number] if n != "loss"]
    return PipelineStage(
        module, number, len(stages), CPU,
        input_args=example(inside[0].input_shape, trained=number > 0),
        output_args=example(inside[-1].output_shape, trained=True),
    )  # fmt: skip


class PipelineRank:
    """``torch.distributed.pipelining``: the plan's stages, microbatches and schedule."""

    def __init__(self, setting: Setting) -> None:
        plan, self.recipe = setting.plan, setting.recipe
        self.name = "torch " + plan.schedule
        self.feed, batch = setting.feed, plan.global_batch_size
        self.samples = torch.arange(batch)
        self.microbatches = self.samples.chunk(plan.n_microbatches)
        stages = setting.stages()
        mine = [s for s, (rank,) in enumerate(setting.program.stages) if rank == setting.rank]
        self.first, self.last = 0 in mine, len(stages) - 1 in mine
        self.modules = [network(setting, stages[s], "ours") for s in mine]
        built = [
            _stage(module, s, setting, stages) for module, s in zip(self.modules, mine, strict=True)
        ]
        schedule = get_schedule_class(plan.schedule)
        single = issubclass(schedule, PipelineScheduleSingle)

        def loss(output: Tensor, labels: Tensor) -> Tensor:
            return nn.functional.cross_entropy(output, labels, reduction="sum") / batch

        self.schedule = schedule(
            built[0] if single else built, plan.n_microbatches, loss_fn=loss, scale_grads=False
        )
        self.optimizers = [sgd(module, self.recipe) for module in self.modules]

    def step(self, number: int) -> float:
        for module in self.modules:
            _lay_out_masks(module, self.recipe, number, self.microbatches)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        losses: list[Tensor] = []
        images = [self.feed.images(number, self.samples)] if self.first else []
        labels = self.feed.labels(number, self.samples) if self.last else None
        self.schedule.step(*images, target=labels, losses=losses, return_outputs=False)
        for optimizer in self.optimizers:
            optimizer.step()
        return float(sum(float(loss.detach()) for loss in losses))
