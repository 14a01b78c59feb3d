"""Memory predicted from the program against what torch allocates when the program is run."""

from __future__ import annotations

import time

import pytest

from benchmarks.memory import Row, found, rows
from benchmarks.memory_meter import measured_peaks
from orchestrator.models import (
    Add,
    BatchNorm,
    Conv,
    GlobalAveragePool,
    Layer,
    Linear,
    Model,
    ReLU,
    Tanh,
    build_model,
)
from orchestrator.plan import Plan, load_plan, shipped_names
from orchestrator.program import Program, compile_plan
from orchestrator.simulate.cluster import load_cluster
from orchestrator.simulate.fit import fits, what_would_fit
from orchestrator.simulate.memory import peak_memory
from tests.networks import gpt
from tests.program.small import small_program

SMALL = ("model.width=0.25", "global_batch_size=32")


def loaded(name: str, *settings: str) -> tuple[Plan, Model]:
    plan = load_plan(name, settings)
    options = plan.model.model_dump(exclude_none=True, exclude={"name"})
    return plan, build_model(str(plan.model.name), options)


def compiled(name: str, *settings: str) -> Program:
    return compile_plan(*loaded(name, *settings))


# The tolerance is what was found, rounded up: most are exact to the small change of the libraries.
CASES = [
    ("single", (), 0.005),
    ("single", ("n_microbatches=2",), 0.005),
    ("single", ("activation_checkpoint=always",), 0.005),
    ("single", ("model.name=alexnet2012-released",), 0.005),
    ("krizhevsky2012", (), 0.005),
    ("krizhevsky2012-half", (), 0.005),
    ("data-parallel", (), 0.005),
    # the transport between processes copies shards, the one inside a process does not
    ("data-parallel", ("optimizer_sharding=zero1",), 0.05),
    ("one-weird-trick-gather", (), 0.005),
    ("one-weird-trick-broadcast", (), 0.005),
    ("one-weird-trick-scatter", (), 0.005),
    ("megatron-fc", (), 0.005),
    ("columns-x-data", (), 0.005),
    ("four-columns", (), 0.005),
    ("isolated-columns", (), 0.005),
    ("pipeline-gpipe", (), 0.005),
    ("pipeline-1f1b", (), 0.005),
    ("pipeline-1f1b", ("activation_checkpoint=always",), 0.005),
    ("pipeline-interleaved", (), 0.005),
    ("pipeline-zero-bubble", (), 0.005),
    ("pipeline-x-data", (), 0.005),
]


def test_every_shipped_plan_is_measured() -> None:
    assert {name for name, _, _ in CASES} == set(shipped_names("partitions"))


@pytest.mark.parametrize(("name", "settings", "tolerance"), CASES)
def test_prediction_agrees_with_what_torch_allocates(
    name: str, settings: tuple[str, ...], tolerance: float
) -> None:
    program = compiled(name, *SMALL, *settings)
    measured = measured_peaks(program)
    predicted = peak_memory(program, processor=True)
    assert len(predicted) == len(measured)
    for rank, bytes_measured in zip(predicted, measured, strict=True):
        assert rank.peak_bytes == pytest.approx(bytes_measured, rel=tolerance), rank


def test_parts_add_up_and_name_their_op() -> None:
    for rank in peak_memory(compiled("krizhevsky2012")):
        assert sum(rank.parts.values()) == rank.peak_bytes
        assert rank.peak_op.rank == rank.rank
        assert rank.parts["parameters"] == rank.parts["optimizer_state"]
    assert rank.parts["parameters"] == 4 * 28_434_112


def test_the_series_holds_every_op_and_its_top_is_the_peak() -> None:
    program = compiled("pipeline-1f1b")
    for rank in peak_memory(program, series=True):
        assert [op for op, _ in rank.series] == list(program.order[rank.rank])
        assert max(n for _, n in rank.series) == rank.peak_bytes
        assert dict(rank.series)[rank.peak_op.id] == rank.peak_bytes


def test_1f1b_keeps_fewer_microbatches_than_gpipe() -> None:
    first = {name: peak_memory(compiled(name))[0] for name in ("pipeline-gpipe", "pipeline-1f1b")}
    saved = {name: rank.parts["activations"] for name, rank in first.items()}
    assert saved["pipeline-1f1b"] * 4 == saved["pipeline-gpipe"]  # 2 microbatches of 8


def test_everything_but_the_parameters_scales_with_the_batch() -> None:
    small, large = (
        peak_memory(compiled("single", f"global_batch_size={n}"))[0].parts for n in (64, 128)
    )
    assert large["activations"] == 2 * small["activations"]
    assert large["parameters"] == small["parameters"] == 4 * 60_965_224


def test_zero1_shares_out_the_momentum() -> None:
    plain, sharded = (
        peak_memory(compiled("data-parallel", f"optimizer_sharding={kind}"))[0].parts[
            "optimizer_state"
        ]
        for kind in ("none", "zero1")
    )
    assert sharded == pytest.approx(plain / 2, rel=1e-6)


def test_a_folded_replica_needs_what_each_replica_needs() -> None:
    plan, model = loaded("pipeline-x-data")
    folded = peak_memory(compile_plan(plan, model, fold=True))
    unfolded = peak_memory(compile_plan(plan, model))
    assert [r.peak_bytes for r in unfolded] == 2 * [r.peak_bytes for r in folded]


def test_walking_is_fast() -> None:
    program = compiled("pipeline-1f1b", "n_microbatches=2048", "global_batch_size=2048")
    began = time.perf_counter()
    peak_memory(program)
    assert len(program.columns) / (time.perf_counter() - began) > 5e4  # 3.6e5 on a quiet core


# -- whether it fits ------------------------------------------------------------------------------


def test_what_fits_and_what_does_not() -> None:
    cluster = load_cluster("gtx580x2")
    small = compiled("krizhevsky2012")
    assert all(fit.fits for fit in fits(small, cluster, peak_memory(small)))
    large = compiled("single", "global_batch_size=512")
    (fit,) = fits(large, cluster, peak_memory(large))
    assert not fit.fits
    assert "rank 0 does not fit GTX 580: needs 5.64 GiB of 2.85 GiB, at 0B0 (activations" in str(
        fit
    )


def test_what_would_fit_is_tried_not_guessed() -> None:
    cluster = load_cluster("gtx580x2")
    plan, model = loaded("data-parallel", "global_batch_size=1024")
    remedies = what_would_fit(plan, model, cluster)
    assert remedies
    for remedy in remedies:
        settings = ("global_batch_size=1024", *remedy.settings)
        program = compiled("data-parallel", *settings)
        found = fits(program, cluster, peak_memory(program))
        assert all(fit.fits for fit in found), settings
        assert max(fit.peak_bytes for fit in found) == remedy.tightest.peak_bytes
        assert str(remedy).startswith("--set ")


def test_where_nothing_fits_the_nearest_is_told() -> None:
    cluster = load_cluster("gtx580x2", ["device.memory_GiB=0.3"])
    (nearest,) = what_would_fit(*loaded("single"), cluster)
    assert not nearest.fits
    assert nearest.settings


def test_folded_replicas_are_held_against_their_smallest_device() -> None:
    kind = "name: {}, memory_GiB: {}, memory_GBps: 9, tflops: {{float32: 1}}, assumed: true"
    large, small = kind.format("large", 16), kind.format("small", 1)
    override = f"devices=[{{device: {{{large}}}, count: 7}}, {{device: {{{small}}}, count: 1}}]"
    cluster = load_cluster("k20x8", ["device=null", override])
    plan, model = loaded("pipeline-x-data", "replicas=4")
    program = compile_plan(plan, model, fold=True)
    memories = peak_memory(program)
    assert [fit.device for fit in fits(program, cluster, memories)] == ["large", "small"]


def chain(channels: int) -> Model:
    """Plain 3 x 3 convolutions, of which oneDNN needs copies in blocks of 16 channels."""
    layers: list[Layer] = []
    for i in range(4):
        layers += [
            Conv(name=f"conv{i}", channels=channels, kernel=3, padding=1), ReLU(name=f"relu{i}")
        ]  # fmt: skip
    layers += [GlobalAveragePool(name="pool"), Linear(name="fc", features=10)]
    return Model("chain", (3, 24, 24), layers)


@pytest.mark.parametrize("channels", [6, 16, 24])
@pytest.mark.parametrize("split", ["[0], split: none", "[0, 1], split: channel"])
def test_copies_of_the_convolution_library_are_counted_on_processors(
    channels: int, split: str
) -> None:
    """These were 10 to 30 % too low."""
    program = small_program(chain(channels), f"layers: all, ranks: {split}", batch=16)
    measured = measured_peaks(program)
    for rank, bytes_measured in zip(peak_memory(program, processor=True), measured, strict=True):
        assert rank.peak_bytes == pytest.approx(bytes_measured, rel=0.03), rank
    without = peak_memory(program)[0].peak_bytes
    assert without < 0.95 * measured[0]


TRANSFORMER = {
    "one": ("layers: all, ranks: [0], split: none",),
    "batch": ("layers: all, ranks: [0, 1], split: batch",),
    "channel": ("layers: all, ranks: [0, 1], split: channel",),
    "token": ("layers: all, ranks: [0, 1], split: token",),
}


@pytest.mark.parametrize("name", TRANSFORMER)
def test_memory_of_a_transformer(name: str) -> None:
    model = gpt(tokens=32, channels=64, heads=4)
    program = small_program(model, *TRANSFORMER[name], batch=16)
    measured = measured_peaks(program)
    for rank, bytes_measured in zip(peak_memory(program, processor=True), measured, strict=True):
        assert rank.peak_bytes == pytest.approx(bytes_measured, rel=0.03), rank


def residual(group: int | None) -> Model:
    """A skip, whose gradient is shared by the two that are added, and batch norms."""

    def conv(name: str) -> Conv:
        return Conv(name=name, channels=32, kernel=3, padding=1, bias=None)

    layers: list[Layer] = [
        conv("conv1"),
        BatchNorm(name="norm1", group=group),
        ReLU(name="relu1"),
        conv("conv2"),
        BatchNorm(name="norm2", group=group),
        Add(name="sum", inputs=("norm2", "relu1")),
        ReLU(name="relu2"),
        GlobalAveragePool(name="pool"),
        Linear(name="fc", features=10),
    ]
    return Model("residual", (4, 24, 24), layers)


@pytest.mark.parametrize("group", [None, 4])
@pytest.mark.parametrize("entry", ["ranks: [0], split: none", "ranks: [0, 1], split: batch"])
def test_memory_of_a_residual_network_with_batch_norm(
    entry: str, group: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """These were 10 to 14 % too low: the skip's gradient was let go with the first that had it,
    and what moments return to a convolution is added to what comes from outside."""
    program = small_program(residual(group), f"layers: all, {entry}", batch=16)
    measured = measured_peaks(program)
    for rank, bytes_measured in zip(peak_memory(program, processor=True), measured, strict=True):
        assert rank.peak_bytes == pytest.approx(bytes_measured, rel=0.01), rank


def test_running_averages_are_held_and_have_no_velocity() -> None:
    layers: list[Layer] = [BatchNorm(name="norm", group=4), Linear(name="fc", features=2)]
    program = small_program(
        Model("wide", (4096,), layers), "layers: all, ranks: [0, 1], split: channel"
    )
    for rank in peak_memory(program):
        assert rank.parts["parameters"] == 4 * (4 * 2048 + 4096 + 1)
        assert rank.parts["optimizer_state"] == 4 * (2 * 2048 + 4096 + 1)


# Its peak is in an update, in a conversion of gradients or in an activation's backward: products
# in bfloat16 have copies of their own on some processors.
PERCEPTRON = Model(
    "perceptron",
    (64,),
    [
        Linear(name="fc1", features=512),
        Tanh(name="tanh1"),
        Linear(name="fc2", features=512),
        *(Tanh(name=f"tanh{i}") for i in range(2, 8)),
        Linear(name="fc3", features=10),
    ],
)
STATES = [
    (dtype, optimizer, ranks, batch)
    for dtype in ("float32", "bfloat16")
    for optimizer in ("sgd2012", "adamw", "lars", "{name: sgd, momentum: 0}")
    for ranks in (1, 2)
    for batch in (16, 2048)
    if not (optimizer == "lars" and ranks == 2)
    # the transport inside a process copies all of a buffer, which only activations outweigh
    if not (ranks == 2 and batch == 16 and dtype == "bfloat16")
]


@pytest.mark.parametrize(("dtype", "optimizer", "ranks", "batch"), STATES)
def test_memory_of_optimizers_and_masters(
    dtype: str, optimizer: str, ranks: int, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On two ranks with the optimizer sharded."""
    split = "[0], split: none" if ranks == 1 else "[0, 1], split: batch"
    more = f"training: {{optimizer: {optimizer}}}\n"
    more += "optimizer_sharding: zero1\n" if ranks == 2 else ""
    program = small_program(
        PERCEPTRON, f"layers: all, ranks: {split}", batch=batch, dtype=dtype, more=more
    )
    measured = measured_peaks(program)
    for rank, bytes_measured in zip(peak_memory(program, processor=True), measured, strict=True):
        assert rank.peak_bytes == pytest.approx(bytes_measured, rel=0.03), rank


# A case for each thing that once was missing or counted too much; the worst is 1.0 % off.
FAMILIES = [
    "resnet, batch",  # gradients added to one that is held; a batch norm's second input gradient
    "resnet, height",  # parts of images are views of them
    "resnet, stages, ZB-H1",  # what W needs of I's
    "inception, height",  # a padded pool's gradient is cropped when the rest is gone
    "inception, stages, 1F1B",  # a concatenation's gradients are views of one tensor
    "squeeze_excitation, one",
    "separable, channel",
    "gpt, stages, ZB-H1",
    "llama, one",  # keys and queries that are turned, a composed norm
    "llama, token x channel",
]


@pytest.mark.parametrize("row", [r for r in rows() if str(r) in FAMILIES], ids=str)
def test_memory_of_the_families(row: Row) -> None:
    for rank in found(row):
        assert rank.error == pytest.approx(0, abs=0.02), rank


def test_every_family_is_measured() -> None:
    assert set(FAMILIES) <= {str(row) for row in rows()}
    assert {row.family for row in rows()} == {name.split(",")[0] for name in FAMILIES}


@pytest.mark.parametrize("padding", [0, (0, 3)])
@pytest.mark.parametrize("channels", [24, 96])
def test_copies_of_the_first_convolution(channels: int, padding: int | tuple[int, int]) -> None:
    """It has them like the others: without them a third or more is missing here.

    They do not show in a network whose next layer is a function of each value, as AlexNet: that
    one's backward needs three tensors of this size, the convolution's own two.
    """
    first = Conv(name="first", channels=channels, kernel=11, stride=4, padding=padding)
    last: list[Layer] = [GlobalAveragePool(name="pool"), Linear(name="fc", features=10)]
    model = Model("first", (3, 96, 96), [first, *last])
    program = small_program(model, "layers: all, ranks: [0], split: none", batch=16)
    (measured,) = measured_peaks(program)
    assert peak_memory(program, processor=True)[0].peak_bytes == pytest.approx(measured, rel=0.01)
    assert peak_memory(program)[0].peak_bytes < 0.9 * measured
