"""Networks of every family under every split that suits them: three steps equal one device's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from torch import Tensor

from orchestrator.errors import InputError
from orchestrator.execute.verify import Verdict, verify
from orchestrator.models import Constant, Layer, LayerPart, Model, ParameterSpec, Value
from orchestrator.models.model import Recipe
from tests.networks import gpt, inception, linear, llama, resnet, separable, squeeze_excitation
from tests.program.small import small_program

RECIPE = Recipe(lr=0.05)


def verdict(model: Model, *entries: str, more: str = "", batch: int = 4, steps: int = 3) -> Verdict:
    program = small_program(model, *entries, batch=batch, more=more, dtype="float64")
    return verify(program, RECIPE, update_examples={}, steps=steps)


def entry(layers: str, ranks: str, split: str, more: str = "") -> str:
    return f"layers: {layers}, ranks: {ranks}, split: {split}{more}"


def every(ranks: str, split: str, more: str = "") -> tuple[str, ...]:
    return (entry("all", ranks, split, more),)


def named(model: Model, entries: Sequence[str]) -> list[str]:
    """Entries with the model's own names: FIRST for what is before its blocks, AFTER for the layer
    behind the first projection, HEADLESS for all but its last layer, REST for what is left."""
    names = [layer.name for layer in model.layers]
    words = {"HEADLESS": f"{names[0]}..{names[-3]}"}
    if "blocks.0.project" in names:
        behind = names[names.index("blocks.0.norm1") - 1]
        words["FIRST.."] = f"{names[0]}.."
        words["FIRST"] = f"{names[0]}..{behind}"
        words["AFTER"] = names[names.index("blocks.0.project") + 1]
    else:
        last = entries[0].partition("..")[2].partition(",")[0]
        following = names.index(last) + 1 if last in names else 0
        words["REST"] = f"{names[following]}..fc"
    found = []
    for text in entries:
        for word, name in words.items():
            text = text.replace(word, name)
        found.append(text)
    return found


# -- sequences: every layer has tokens and channels -----------------------------------------------

SEQUENCES: dict[str, tuple[str, ...]] = {
    "none": every("[0]", "none"),
    "replicated": every("[0, 1]", "none"),
    "batch": every("[0, 1]", "batch"),
    "channel": every("[0, 1]", "channel"),
    "channel, keys shared by two ranks": every("0..3", "channel"),
    "token": every("[0, 1]", "token"),
    "token in uneven shares": every("[0, 1]", "token", ", shares: [2, 1]"),
    "token in odd lengths": every("0..3", "token"),
    "batch x channel": every("0..3", "{batch: 2, channel: 2}"),
    "batch x token in uneven shares": every(
        "0..5", "{batch: 2, token: 3}", ", shares: {token: [1, 3, 2], batch: [3, 1]}"
    ),
    "token x channel": every("0..3", "{token: 2, channel: 2}"),
    "batch x token x channel": every("0..7", "{batch: 2, token: 2, channel: 2}"),
    "stages": (
        entry("embedding..blocks.0.attention", "[0]", "none"),
        entry("blocks.0.project..head", "[1]", "none"),
    ),
    "stages of tokens, columns and rows": (
        entry("embedding..blocks.0.norm1", "[0, 1]", "token"),
        entry("blocks.0.q..blocks.0.attention", "[0, 1]", "channel"),
        entry("blocks.0.project", "[0, 1]", "input"),
        entry("AFTER..blocks.1.norm1", "[0, 1]", "token"),
        entry("blocks.1.q..head", "[2, 3]", "batch"),
    ),
    "norms replicated": (
        entry("embedding..blocks.0.norm1", "[0, 1]", "none"),
        entry("blocks.0.q..blocks.0.attention", "[0, 1]", "channel"),
        entry("blocks.0.project", "[0, 1]", "input"),
        entry("AFTER..head", "[0, 1]", "none"),
    ),
    "first block on other ranks": (
        entry("FIRST", "[0]", "none"),
        entry("blocks.0", "[1]", "none"),
        entry("blocks.1..norm", "[2]", "none"),
        entry("head", "[0]", "none"),
    ),
}


@pytest.mark.parametrize("split", SEQUENCES)
@pytest.mark.parametrize("build", [gpt, llama], ids=lambda build: build.__name__)
def test_a_transformer_equals_one_device(build: Callable[[], Model], split: str) -> None:
    model = build()
    found = verdict(model, *named(model, SEQUENCES[split]))
    assert found.passed, found.problems


# Schedules, checkpoints and shards that walk a block in other ways than one forward and backward.
WALKS = {
    "1F1B": (
        entry("FIRST..blocks.0.attention", "[0]", "none"),
        entry("blocks.0.project..blocks.1.q", "[1]", "none"),
        entry("blocks.1.k..head", "[2]", "none"),
        "schedule: 1F1B\nn_microbatches: 4",
    ),
    "1F1B with recomputation": (
        entry("FIRST..blocks.0.attention", "[0, 1]", "token"),
        entry("blocks.0.project..head", "[2, 3]", "channel"),
        "schedule: 1F1B\nn_microbatches: 2\nactivation_checkpoint: always",
    ),
    "Interleaved1F1B": (
        entry("FIRST", "[0]", "none"),
        entry("blocks.0", "[1]", "none"),
        entry("blocks.1", "[0]", "none"),
        entry("norm..head", "[1]", "none"),
        "schedule: Interleaved1F1B\nn_microbatches: 2",
    ),
    "InterleavedZeroBubble": (
        entry("FIRST..blocks.0.k", "[0]", "none"),
        entry("blocks.0.v..head", "[1]", "none"),
        "schedule: InterleavedZeroBubble\nn_microbatches: 2",
    ),
    "ZBVZeroBubble": (
        entry("FIRST", "[0]", "none"),
        entry("blocks.0", "[1]", "none"),
        entry("blocks.1", "[1]", "none"),
        entry("norm..head", "[0]", "none"),
        "schedule: ZBVZeroBubble\nn_microbatches: 2",
    ),
    "ZB-H1": (
        entry("FIRST..blocks.0.k", "[0]", "none"),
        entry("blocks.0.v..head", "[1]", "none"),
        "schedule: ZB-H1\nn_microbatches: 4",
    ),
    "LoopedBFS": (
        entry("FIRST", "[0]", "none"),
        entry("blocks.0", "[1]", "none"),
        entry("blocks.1", "[0]", "none"),
        entry("norm..head", "[1]", "none"),
        "schedule: LoopedBFS\nn_microbatches: 4\nactivation_checkpoint: except_last",
    ),
    "DualPipeV": (
        entry("FIRST", "[0]", "none"),
        entry("blocks.0", "[1]", "none"),
        entry("blocks.1", "[1]", "none"),
        entry("norm..head", "[0]", "none"),
        "schedule: DualPipeV\nn_microbatches: 4",
    ),
    "zero1 over tokens and replicas": (
        entry("all", "[0, 1]", "token"),
        "optimizer_sharding: zero1\nreplicas: 2",
    ),
}


@pytest.mark.parametrize("walk", WALKS)
@pytest.mark.parametrize("build", [gpt, llama], ids=lambda build: build.__name__)
def test_a_transformer_equals_one_device_however_it_is_walked(
    build: Callable[[], Model], walk: str
) -> None:
    model = build()
    *entries, more = WALKS[walk]
    found = verdict(model, *named(model, entries), more=more + "\n")
    assert found.passed, found.problems


# -- images ---------------------------------------------------------------------------------------

GRID = "{batch: 2, channel: 2}"
IMAGES: list[tuple[Callable[[], Model], str, tuple[str, ...]]] = [
    (build, name, entries)
    for build, last in (
        (resnet, "blocks.2.relu3"),
        (inception, "average"),
        (squeeze_excitation, "conv"),
        (separable, "relu4"),
    )
    for name, entries in {
        "none": every("[0]", "none"),
        "replicated": every("[0, 1]", "none"),
        "batch": every("[0, 1]", "batch"),
        "channel": (entry("HEADLESS", "[0, 1]", "channel"), entry("fc", "[0]", "none")),
        "batch x channel": (entry("HEADLESS", "0..3", GRID), entry("fc", "0..3", "batch")),
        "height": (
            entry(f"stem..{last}", "[0, 1]", "height"),
            entry("REST", "[0, 1]", "batch"),
        ),
        "height in uneven shares": (
            entry(f"stem..{last}", "[0, 1, 2]", "height", ", shares: [3, 1, 2]"),
            entry("REST", "[0]", "none"),
        ),
        "height x channel": (
            entry(f"stem..{last}", "0..3", "{height: 2, channel: 2}"),
            entry("REST", "0..3", "batch"),
        ),
        "width": (
            entry(f"stem..{last}", "[0, 1]", "width"),
            entry("REST", "[0, 1]", "batch"),
        ),
        "height x width in uneven shares": (
            entry(f"stem..{last}", "0..3", "{height: 2, width: 2}", ", shares: {width: [2, 1]}"),
            entry("REST", "0..3", "batch"),
        ),
        "batch x height x channel": (
            entry(f"stem..{last}", "0..7", "{batch: 2, height: 2, channel: 2}"),
            entry("REST", "0..3", "batch"),
        ),
    }.items()
]


@pytest.mark.parametrize(
    ("build", "split", "entries"), IMAGES, ids=[f"{b.__name__}-{s}" for b, s, _ in IMAGES]
)
def test_an_image_network_equals_one_device(
    build: Callable[[], Model], split: str, entries: tuple[str, ...]
) -> None:
    found = verdict(build(), *named(build(), entries))
    assert found.passed, found.problems


STAGES = {
    "a skip that crosses stages": (
        resnet(),
        (
            entry("stem..blocks.1.conv2", "[0]", "none"),
            entry("blocks.1.relu2..blocks.2.conv3", "[1]", "none"),
            entry("blocks.2.projection..fc", "[2]", "none"),
        ),
    ),
    "uneven rows and uneven channels": (
        resnet(),
        (
            entry(
                "stem..blocks.2.relu3", "0..3", "{height: 2, channel: 2}",
                ", shares: {height: [2, 1], channel: [3, 1]}",
            ),
            entry(
                "mean..fc", "0..3", "{batch: 2, input: 2}", ", shares: {batch: [3, 1]}"
            ),
        ),
    ),
    "towers listed beside each other, in uneven grids": (
        inception(),
        (
            entry("[stem, relu]", "0..3", "{batch: 2, height: 2}", ", shares: {height: [3, 1]}"),
            entry(
                "[a1..a, c1..c]", "0..3", "{height: 2, batch: 2}",
                ", shares: {batch: [3, 1], height: [5, 2]}",
            ),
            entry("[d1..d, b1..b]", "[4, 5]", "height", ", shares: [1, 2]"),
            entry("joined..fc", "[0]", "none"),
        ),
    ),
    "a skip from one split into another": (
        resnet(),
        (
            entry("stem..blocks.0.conv2", "[0, 1]", "height"),
            entry("blocks.0.relu2..blocks.1.conv2", "[2, 3]", "channel"),
            entry("blocks.1.relu2..blocks.2.relu3", "[4, 5]", "batch"),
            entry("mean..fc", "[4]", "none"),
        ),
    ),
    "towers on ranks of their own": (
        inception(),
        (
            entry("stem..relu", "[0]", "none"),
            entry("a1..a", "[0]", "none"),
            entry("b1..b", "[1]", "none"),
            entry("c1..c", "[2]", "none"),
            entry("d1..d", "[3]", "none"),
            entry("joined..fc", "[0]", "none"),
        ),
    ),
    "towers of two ranks, split in other ways": (
        inception(),
        (
            entry("stem..relu", "0..3", "batch"),
            entry("a1..a", "[0, 1]", "channel"),
            entry("c1..c", "[0, 1]", "channel"),
            entry("b1..b", "[2, 3]", "height"),
            entry("d1..d", "[2, 3]", "height"),
            entry("joined..average", "0..3", GRID),
            entry("flat..fc", "[3]", "none"),
        ),
    ),
    "towers whose ranks join by channel": (
        inception(),
        (
            entry("stem..relu", "[0, 1]", "none"),
            entry("a1..a", "[0]", "none"),
            entry("b1..b", "[0]", "none"),
            entry("c1..c", "[1]", "none"),
            entry("d1..d", "[1]", "none"),
            entry("joined..flat", "[0, 1]", "channel"),
            entry("fc", "[0, 1]", "input"),
        ),
    ),
    "a gate on another rank": (
        squeeze_excitation(),
        (
            entry("stem..conv", "[0, 1]", "height"),
            entry("squeeze..gate", "[2]", "none"),
            entry("scaled..relu3", "[0, 1]", "height"),
            entry("mean..fc", "[2]", "none"),
        ),
    ),
    "a gate in columns and rows": (
        squeeze_excitation(),
        (
            entry("stem..relu2", "[0, 1]", "channel"),
            entry("expand", "[0, 1]", "input"),
            entry("gate..relu3", "[0, 1]", "channel"),
            entry("mean..fc", "[0, 1]", "batch"),
        ),
    ),
    "a depthwise pair cut in two": (
        separable(),
        (
            entry("stem..depth1", "[0, 1]", "channel"),
            entry("relu1..relu3", "[2, 3]", "height"),
            entry("point2..fc", "[4]", "none"),
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("more", ["", "n_microbatches: 2\n"], ids=["whole", "microbatches"])
@pytest.mark.parametrize("stages", STAGES)
def test_blocks_cut_inside_equal_one_device(stages: str, more: str) -> None:
    model, entries = STAGES[stages]
    found = verdict(model, *entries, more=more, batch=8 if more else 4)
    assert found.passed, found.problems


# -- parameters that only some ranks share --------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Mixed(Layer):
    """A kind of one's own: a factor for each channel, and one for all."""

    def parameters(self, *inputs: Value) -> tuple[ParameterSpec, ...]:
        each = ParameterSpec("each", (inputs[0].channels,), Constant(1.0), ("channel",))
        return (each, ParameterSpec("all", (1,), Constant(1.0)))

    def compute(
        self, part: LayerPart, inputs: Sequence[Tensor], parameters: Sequence[Tensor], draw: Any
    ) -> Tensor:
        each, everything = parameters
        return inputs[0] * each * everything


def test_a_layer_whose_parameters_are_shared_by_different_ranks_is_refused() -> None:
    """Its gradients would be summed over too many ranks, or over too few."""
    model = Model("mixed", (4,), [linear("fc1", 4), Mixed(name="mixed"), linear("fc2", 4)])
    with pytest.raises(InputError, match="mixed: ranks that hold the same of all differ in its"):
        small_program(model, *every("[0, 1]", "channel"))
    small_program(model, *every("[0, 1]", "batch"))


def test_layers_shared_by_different_ranks_are_summed_apart() -> None:
    """Under ``split: token`` an embedding's gradient is summed, its positions' rows are not: a
    bucket of both was summed over nobody."""
    program = small_program(gpt(blocks=1), *every("[0, 1]", "token"))
    groups = {
        layer.name: {bucket.ranks for bucket in buckets}
        for segment, buckets in zip(program.segments, program.buckets, strict=True)
        for layer in segment.layers
        if layer.has_weights
    }
    assert groups.pop("position") == {(0,), (1,)}
    assert set(map(frozenset, groups.values())) == {frozenset({(0, 1)})}


# -- sabotage: a part function that is wrong is seen, since one device does not use it ------------

Compute = Callable[..., Tensor]


def scaled_gradient(compute: Compute) -> Compute:
    """Right values, and gradients of all that is read twice too large."""

    def sabotaged(layer: Layer, part: LayerPart, *args: Any) -> Tensor:
        y = compute(layer, part, *args)
        return y.detach() * -1 + 2 * y

    return sabotaged


def no_gradient_of_the_last(compute: Compute) -> Compute:
    """The last of what it reads (or of its parameters) counts as a constant."""

    def sabotaged(
        layer: Layer,
        part: LayerPart,
        inputs: Sequence[Tensor],
        weights: Sequence[Tensor],
        draw: Any,
    ) -> Tensor:
        if weights:
            weights = [*weights[:-1], weights[-1].detach()]
        else:
            inputs = [*inputs[:-1], inputs[-1].detach()]
        return compute(layer, part, inputs, weights, draw)

    return sabotaged


def shifted(compute: Compute) -> Compute:
    """Values that are a little too large."""

    def sabotaged(layer: Layer, part: LayerPart, *args: Any) -> Tensor:
        return compute(layer, part, *args) * 1.001

    return sabotaged


KINDS = [
    (gpt, "attention"), (gpt, "layer_norm"), (gpt, "embedding"), (gpt, "position_embedding"),
    (gpt, "gelu"), (gpt, "add"), (gpt, "dropout"), (gpt, "linear"),
    (llama, "attention"), (llama, "rms_norm"), (llama, "silu"), (llama, "multiply"),
    (resnet, "conv"), (resnet, "pool"), (resnet, "relu"), (resnet, "global_pool"),
    (inception, "concat"), (inception, "average_pool"), (inception, "flatten"),
    (squeeze_excitation, "sigmoid"), (squeeze_excitation, "multiply"),
]  # fmt: skip


@pytest.mark.parametrize("sabotage", [shifted, scaled_gradient, no_gradient_of_the_last])
@pytest.mark.parametrize(("build", "kind"), KINDS, ids=[f"{b.__name__}-{k}" for b, k in KINDS])
def test_a_wrong_part_function_is_named(
    build: Callable[[], Model],
    kind: str,
    sabotage: Callable[[Compute], Compute],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = build()
    (cls,) = {type(layer.layer) for layer in model.layers if layer.kind == kind}
    monkeypatch.setattr(cls, "compute", sabotage(cls.compute))
    named = [layer.name for layer in model.layers if layer.kind == kind]
    (first, *_) = verdict(model, *every("[0]", "none"), steps=1).problems
    if sabotage is shifted:
        assert first.startswith(f"{named[0]}: its output on rank 0 differs by ")
        assert first.endswith(" in step 1 (forward)")
    else:
        wrong = ("the gradient of its ", "its output on rank 0 passes no gradient back ")
        assert first.startswith(tuple(f"{named[-1]}: {what}" for what in wrong))
        assert first.endswith(" in step 1 (backward)")
