"""Plans drawn at random: each runs without deadlock, to the byte, and trains like one device.

A plan that cannot be compiled must say so with an ``InputError``; any other exception is a bug.
Models are tiny and hold every layer kind, with values large enough that a wrong one shows.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from orchestrator.errors import InputError
from orchestrator.execute.verify import verify
from orchestrator.models import (
    GELU,
    Add,
    Attention,
    AveragePool,
    BatchNorm,
    Concat,
    Conv,
    Dropout,
    Embedding,
    Flatten,
    GlobalAveragePool,
    Layer,
    LayerNorm,
    Linear,
    MaxPool,
    Model,
    Multiply,
    PositionEmbedding,
    ReLU,
    ResponseNorm,
    RMSNorm,
    Sigmoid,
    SiLU,
    SizedLayer,
    SpatialNorm,
    build_model,
)
from orchestrator.models.model import Recipe
from orchestrator.plan import Plan, read_plan
from orchestrator.program import Program, compile_plan
from orchestrator.program.placement import update_examples
from orchestrator.schedules import SCHEDULES, Schedule
from tests.schedules.test_own_schedule import one_at_a_time, weights_last

DRAWN, ACCEPTED = 800, 400
GRAPHS, ACCEPTED_GRAPHS = 700, 400
# Large steps: after two of them most of each weight's change depends on every gradient.
RECIPE = Recipe(lr=0.1, momentum=0.8, weight_decay=0.05, seed=3)
COLUMN_READS = ((0, 1, 2), (0, 1, 3), (2, 3, 0), (2, 3, 1))


def _conv(
    name: str,
    channels: int,
    kernel: int,
    padding: int = 0,
    groups: int = 1,
    of: str = "",
    tied: str = "",
) -> Conv:
    return Conv(
        name=name, inputs=(of,) if of else (), channels=channels, kernel=kernel, padding=padding,
        groups=groups, weight_std=0.3, bias=0.1, tied=tied,
    )  # fmt: skip


def _linear(name: str, features: int, groups: int = 1, of: str = "", tied: str = "") -> Linear:
    inputs = (of,) if of else ()
    return Linear(
        name=name, inputs=inputs, features=features, groups=groups, weight_std=0.2, bias=0.1,
        tied=tied,
    )  # fmt: skip


def _norm(columns: int) -> ResponseNorm:
    return ResponseNorm(name="norm", alpha=1.0, k=1.0, columns=columns)


CHAINS: dict[str, tuple[tuple[int, ...], list[Layer]]] = {
    "columns": (
        (3, 6, 6),
        [
            _conv("conv1", 12, 3), ReLU(name="relu1"), _norm(2), MaxPool(name="pool", kernel=2),
            _conv("conv2", 12, 1, groups=2), ReLU(name="relu2"), _linear("fc3", 12),
            Dropout(name="drop", p=0.4), _linear("fc4", 4),
        ],
    ),
    "halo": (
        (2, 4, 4),
        [
            _conv("conv1", 12, 1), _norm(1), SpatialNorm(name="spatial", scale=1.0),
            _conv("conv2", 12, 3, 1, 3), ReLU(name="relu2"), MaxPool(name="pool", kernel=2),
            _linear("fc3", 12), ReLU(name="relu3"), _linear("fc4", 5),
        ],
    ),
    "four": (
        (4, 2, 2),
        [
            Dropout(name="drop1", p=0.2), _conv("conv1", 8, 1, groups=4),
            Conv(name="conv2", channels=8, kernel=2, column_reads=COLUMN_READS, weight_std=0.3),
            _norm(4), ReLU(name="relu2"), _linear("fc3", 8), Dropout(name="drop3"),
            _linear("fc4", 4),
        ],
    ),
    # a residual, two branches put together, and a gate for each channel
    "graph": (
        (3, 4, 4),
        [
            _conv("conv1", 12, 3, 1), ReLU(name="relu1"), _conv("conv2", 12, 3, 1),
            Add(name="sum", inputs=("conv2", "relu1")), GELU(name="gelu"),
            MaxPool(name="pool", stride=1, padding=1),
            Conv(name="conv3", inputs=("gelu",), channels=12, kernel=1, bias=None, weight_std=0.3),
            Concat(name="both", inputs=("pool", "conv3")), GlobalAveragePool(name="mean"),
            _linear("squeeze", 24), Sigmoid(name="gate"),
            Multiply(name="gated", inputs=("both", "gate")),
            AveragePool(name="shrink", kernel=2), Flatten(name="flat"), _linear("fc", 12),
        ],
    ),
    "tied": (
        (6, 2, 1),
        [
            _linear("fc1", 12), ReLU(name="relu1"), _linear("fc2", 12, tied="fc1.weight"),
            Dropout(name="drop2"), _linear("fc3", 12, tied="fc1.weight"), ReLU(name="relu3"),
            _linear("fc4", 4),
        ],
    ),
    "linear": (
        (12,),
        [
            _linear("fc1", 12), ReLU(name="relu1"), _linear("fc2", 12, groups=3),
            Dropout(name="drop2"), _linear("fc3", 24), ReLU(name="relu3"), _linear("fc4", 12),
        ],
    ),
}  # fmt: skip
MODELS = {name: Model(name, shape, chain, RECIPE) for name, (shape, chain) in CHAINS.items()}
LENET = build_model("lenet5", {"image_size": 16, "width": 0.34, "classes": 4})
MODELS["lenet5"] = Model("lenet5", LENET.input_shape, LENET.declared, RECIPE)

SPLITS = {
    1: ["none", "none", "none", "{batch: 1}"],
    2: ["batch", "channel", "input", "{batch: 1, channel: 2}", "height", "none"],
    3: ["batch", "channel", "input", "none"],
    4: ["{batch: 2, channel: 2}", "{channel: 2, batch: 2}", "{batch: 2, input: 2}", "batch",
        "channel", "input"],
}  # fmt: skip
SHARES = {2: ["[2, 1]", "[1, 2]", "[3, 1]", "[1, 5]"], 3: ["[1, 2, 1]", "[2, 1, 1]"],
          4: ["[3, 1, 1, 1]", "[1, 2, 2, 1]"]}  # fmt: skip
# Rounds of two groups; at least as many as stages.
# A user's schedules: as the package has none, and one whose backward falls in two.
OWN = (
    Schedule("Naive", "a test, 2026", one_at_a_time),
    Schedule("Late", "a test, 2026", weights_last),
)
MICROBATCHES = {"Interleaved1F1B": [2, 4], "InterleavedZeroBubble": [2, 4], "DualPipeV": [4, 5]}


@pytest.fixture
def own_schedules(monkeypatch: pytest.MonkeyPatch) -> None:
    for schedule in OWN:
        monkeypatch.setitem(SCHEDULES, schedule.name, schedule)


@st.composite
def stage_ranks(draw: DrawFn, schedule: str) -> list[list[int]]:
    """The ranks of every entry's stage, as the schedule wants them (GPipe takes any)."""
    width = draw(st.sampled_from([1, 1, 2]))
    if schedule == "GPipe":
        ranks = draw(st.sampled_from([1, 2, 3, 4, 4, 4]))
        entries = draw(st.integers(1, 4))
        everyone = list(range(ranks))
        rows = [
            draw(st.one_of(st.just(everyone), st.permutations(everyone).map(lambda p: p[:-1] or p)))
            for _ in range(entries - 1)
        ]
        return [*rows, everyone] if draw(st.booleans()) else [everyone, *rows]
    if schedule in ("1F1B", "ZB-H1"):
        count = draw(st.integers(1, 4))
        width = 1 if count > 2 else width
        return [list(range(s * width, (s + 1) * width)) for s in range(count)]
    groups = [list(range(g * width, (g + 1) * width)) for g in range(2)]
    if SCHEDULES[schedule].entry_per_stage:
        return draw(st.sampled_from([[*groups, *groups[::-1]], [groups[0], groups[0]]]))
    return draw(st.sampled_from([groups, [*groups, *groups]]))


@st.composite
def plan_texts(draw: DrawFn) -> tuple[str, str]:
    """A plan as YAML, and the name of the model that it is for."""
    name = draw(st.sampled_from(sorted(MODELS)))
    layers = [layer.name for layer in MODELS[name].declared]
    schedule = draw(st.sampled_from([*["GPipe"] * 6, *SCHEDULES]))
    stages = draw(stage_ranks(schedule))
    rows = [ranks for ranks in stages for _ in range(draw(st.sampled_from([1, 1, 2])))]
    if SCHEDULES[schedule].entry_per_stage:
        rows = stages
    rows = rows[: len(layers)]
    cuts = draw(
        st.lists(
            st.integers(1, len(layers) - 1), min_size=len(rows) - 1, max_size=len(rows) - 1,
            unique=True,
        )
    )  # fmt: skip
    spans = list(pairwise([0, *sorted(cuts), len(layers)]))
    # half of the plans that can are "one weird trick": images, then channels in turns
    tricky = len(rows) > 1 and len(stages[0]) > 1 and draw(st.booleans())
    rows = [stages[0]] * len(rows) if tricky and schedule == "GPipe" else rows
    entries: list[str] = []
    before = ""
    for ranks, (first, stop) in zip(rows, spans, strict=True):
        suits = _suit(MODELS[name].layers[first:stop]) if len(ranks) > 1 else []
        along = [axis for axis in suits if axis in ("height", "width")]
        split = draw(st.sampled_from([*SPLITS[len(ranks)], *along, *along]))
        split = ("channel" if entries else "batch") if tricky and len(ranks) > 1 else split
        entry = f"layers: {layers[first]}..{layers[stop - 1]}, ranks: {ranks}, split: {split}"
        if split in ("batch", "channel", "input") and draw(st.integers(0, 3)) == 0:
            entry += f", shares: {draw(st.sampled_from(SHARES[len(ranks)]))}"
        if "batch" in before and "channel" in split and (tricky or draw(st.booleans())):
            entry += f", exchange: {draw(st.sampled_from(['broadcast', 'scatter']))}"
        entries.append(f"  - {{{entry}}}\n")
        before = split
    replicas = draw(st.sampled_from([1, 1, 1, 2]))
    microbatches = draw(st.sampled_from(MICROBATCHES.get(schedule, [1, 2, 3])))
    # scattered examples divide by the square of the ranks
    scattered = any("scatter" in entry for entry in entries)
    microbatch = draw(st.sampled_from([4, 16] if scattered else [4, 6, 12]))
    more = ""
    if draw(st.integers(0, 5)) == 0 and replicas == 1:
        first = draw(st.integers(max(1, spans[-1][0]), len(layers) - 1))
        size = draw(st.sampled_from([microbatch, microbatch // 2]))
        more = f"training: {{layer_batch: {{{layers[first]}..{layers[-1]}: {size}}}}}\n"
    text = (
        f"schema_version: 1\nname: drawn\nmodel: {{name: {name}}}\n"
        f"global_batch_size: {microbatch * microbatches * replicas}\n"
        f"n_microbatches: {microbatches}\nschedule: {schedule}\nreplicas: {replicas}\n"
        f"activation_checkpoint: {draw(st.sampled_from(['never', 'except_last', 'always']))}\n"
        f"optimizer_sharding: {draw(st.sampled_from(['none', 'zero1']))}\n"
        f"{more}placement:\n{''.join(entries)}"
    )
    return text, name


@pytest.mark.slow
@pytest.mark.usefixtures("own_schedules")
def test_every_plan_that_compiles_equals_one_device() -> None:
    seen: Counter[str] = Counter()

    @settings(max_examples=DRAWN)
    @given(plan_texts())
    def check(drawn: tuple[str, str]) -> None:
        text, name = drawn
        model = MODELS[name]
        try:
            plan = read_plan(text, "drawn.yaml")
            program = compile_plan(plan, model, dtype="float64")
        except InputError as error:
            seen["refused"] += 1
            seen["refused without place or remedy"] += not (error.location and error.remedy)
            return
        verdict = verify(program, RECIPE, update_examples=update_examples(plan, model), steps=2)
        assert verdict.passed, f"{text}\n{verdict.problems}"
        seen["accepted"] += 1
        for feature in (
            name, plan.schedule, "broadcast", "scatter", "shares", "input", "layer_batch",
            "replicas: 2", "zero1", "except_last", "batch: 2", "always", "height", "width",
        ):  # fmt: skip
            seen[feature] += feature in text
        seen["replicated"] += any(
            len(entry.ranks) > 1 and entry.split == "none" for entry in plan.placement
        )

    check()
    assert seen["accepted"] >= ACCEPTED, seen
    assert not seen.pop("refused without place or remedy", 0)
    rare = [feature for feature, count in seen.items() if count < 5]
    assert not rare, f"hardly drawn: {rare}"


# -- graphs ---------------------------------------------------------------------------------------

VOCABULARY, WIDTH = 8, 4


@st.composite
def images(draw: DrawFn) -> Model:
    """Blocks of one shape: skips, towers, gates and norms; then scores."""
    height = draw(st.sampled_from([4, 5]))
    layers: list[Layer] = [_conv("stem", WIDTH, 3, 1)]
    stream = ["stem"]  # values of one shape

    def add(layer: Layer) -> str:
        layers.append(layer)
        return layer.name

    def tie(name: str) -> str:
        """Half of the time to the first layer of this name, whose weight has the same shape."""
        owner = next((x.name for x in layers if x.name.rstrip("0123456789") == name), "")
        return f"{owner}.weight" if owner and draw(st.booleans()) else ""

    for n in range(draw(st.integers(1, 4))):
        last = stream[-1]
        block = draw(
            st.sampled_from(["norm", "norm", "skip", "towers", "gate", "product", "depth"])
        )
        if block == "norm":
            norm = draw(st.sampled_from(["batch", "batch", "batch", "response", "spatial"]))
            group = draw(st.sampled_from([4, None, 4, 2]))
            made: Layer = {
                "batch": BatchNorm(name=f"norm{n}", group=group),
                "response": ResponseNorm(name=f"norm{n}", alpha=1.0, window=3),
                "spatial": SpatialNorm(name=f"norm{n}", scale=1.0, window=3),
            }[norm]
            last = add(made)
        elif block == "skip":
            add(_conv(f"skipped{n}", WIDTH, 3, 1, tied=tie("skipped")))
            other = draw(st.sampled_from(stream))
            last = add(Add(name=f"sum{n}", inputs=(f"skipped{n}", other)))
        elif block == "towers":
            towers = []
            for t in range(draw(st.integers(2, 3))):
                kernel = draw(st.sampled_from([0, 1, 3]))
                at = f"tower{n}{t}"
                towers.append(
                    add(
                        MaxPool(name=at, inputs=(last,), kernel=3, stride=1, padding=1)
                        if not kernel
                        else _conv(at, draw(st.sampled_from([2, 4])), kernel, kernel // 2, of=last)
                    )
                )
            add(Concat(name=f"joined{n}", inputs=tuple(towers)))
            last = add(_conv(f"conv{n}", WIDTH, 1))
        elif block == "gate":
            add(GlobalAveragePool(name=f"mean{n}", inputs=(last,)))
            add(_linear(f"squeeze{n}", WIDTH, tied=tie("squeeze")))
            add(Sigmoid(name=f"gate{n}"))
            last = add(Multiply(name=f"gated{n}", inputs=(last, f"gate{n}")))
        elif block == "product":
            add(_conv(f"left{n}", WIDTH, 1, of=last))
            add(_conv(f"right{n}", WIDTH, 1, of=last))
            last = add(Multiply(name=f"product{n}", inputs=(f"left{n}", f"right{n}")))
        else:
            add(_conv(f"depth{n}", WIDTH, 3, 1, groups=WIDTH, of=last))
            last = add(Dropout(name=f"drop{n}", p=0.3))
        if draw(st.booleans()):
            last = add(ReLU(name=f"relu{n}"))
        stream.append(last)
    if draw(st.booleans()):
        add(GlobalAveragePool(name="mean"))
    add(_linear("fc", 4))
    return Model("drawn", (2, height, 4), layers, RECIPE)


@st.composite
def sequences(draw: DrawFn) -> Model:
    """Blocks of a transformer, in drawn order; half of the heads use the embedding's table."""
    layers: list[Layer] = [
        Embedding(name="embedding", vocabulary=VOCABULARY, features=WIDTH, weight_std=0.5)
    ]
    stream = ["embedding"]

    def add(layer: Layer) -> str:
        layers.append(layer)
        return layer.name

    def tie(name: str) -> str:
        """Half of the time to the first layer of this name, whose weight has the same shape."""
        owner = next((x.name for x in layers if x.name.rstrip("0123456789") == name), "")
        return f"{owner}.weight" if owner and draw(st.booleans()) else ""

    if draw(st.booleans()):
        stream.append(add(PositionEmbedding(name="position", weight_std=0.3)))
    for n in range(draw(st.integers(1, 3))):
        last = stream[-1]
        block = draw(st.sampled_from(["attention", "attention", "mlp", "gated", "norm"]))
        if draw(st.booleans()) or block == "norm":
            norm = draw(st.sampled_from([LayerNorm, RMSNorm]))
            last = add(norm(name=f"norm{n}", inputs=(last,)))
        if block == "attention":
            keys = draw(st.sampled_from([WIDTH, WIDTH // 2]))
            for name, width in (("q", WIDTH), ("k", keys), ("v", keys)):
                add(_linear(f"{name}{n}", width, of=last))
            rotary = draw(st.sampled_from([None, 100.0]))
            causal = draw(st.booleans())
            add(
                Attention(
                    name=f"attention{n}", inputs=(f"q{n}", f"k{n}", f"v{n}"), heads=2,
                    kv_heads=2 * keys // WIDTH, causal=causal, rotary=rotary,
                )
            )  # fmt: skip
            last = add(_linear(f"project{n}", WIDTH, tied=tie("project")))
        elif block == "mlp":
            add(_linear(f"up{n}", 2 * WIDTH, of=last, tied=tie("up")))
            add(GELU(name=f"gelu{n}"))
            last = add(_linear(f"down{n}", WIDTH, tied=tie("down")))
        elif block == "gated":
            add(_linear(f"gate{n}", 2 * WIDTH, of=last))
            add(SiLU(name=f"silu{n}"))
            add(_linear(f"up{n}", 2 * WIDTH, of=last))
            add(Multiply(name=f"product{n}", inputs=(f"silu{n}", f"up{n}")))
            last = add(_linear(f"down{n}", WIDTH))
        if block != "norm":
            other = draw(st.sampled_from(stream))
            last = add(Add(name=f"sum{n}", inputs=(last, other)))
        stream.append(last)
    tied = "embedding.weight" if draw(st.integers(0, 3)) else ""
    bias = draw(st.sampled_from([None, 0.1]))
    add(Linear(name="head", features=VOCABULARY, tied=tied, bias=bias, weight_std=0.5))
    return Model("drawn", (draw(st.sampled_from([3, 4])),), layers, RECIPE)


def _suit(span: tuple[SizedLayer, ...]) -> list[str]:
    """Axes on which every layer of a span can be cut."""
    return [
        axis for axis in ("channel", "height", "width", "token")
        if all(axis in s.output.axes and not s.layer.uncut(s, axis) for s in span)
    ]  # fmt: skip


@st.composite
def plans_over_graphs(draw: DrawFn) -> tuple[str, Model]:
    """A graph, and a plan of it whose entries mostly suit their layers."""
    model = draw(st.one_of(images(), images(), sequences()))
    layers = model.layers[:-1]
    schedule = draw(st.sampled_from(["GPipe", "GPipe", "GPipe", *SCHEDULES]))
    rows = draw(stage_ranks(schedule))
    if not SCHEDULES[schedule].entry_per_stage:
        rows = [ranks for ranks in rows for _ in range(draw(st.sampled_from([1, 1, 2])))]
    rows = rows[: len(layers)]
    count = len(rows) - 1
    cuts = draw(
        st.lists(st.integers(1, len(layers) - 1), min_size=count, max_size=count, unique=True)
    )
    entries = []
    for ranks, (first, stop) in zip(rows, pairwise([0, *sorted(cuts), len(layers)]), strict=True):
        suits = _suit(layers[first:stop])
        number = len(ranks)
        splits = ["batch", "none", *suits, *suits, *(x for x in suits if x in ("height", "width"))]
        splits += ["input"] if draw(st.booleans()) and "channel" in suits else []
        if number == 4:
            for a in suits:
                splits += [f"{{batch: 2, {a}: 2}}"]
                splits += [f"{{{b}: 2, {a}: 2}}" for b in suits if b != a]
        split = draw(st.sampled_from(splits)) if number > 1 else "none"
        entry = (
            f"layers: {layers[first].name}..{layers[stop - 1].name}, ranks: {ranks}, split: {split}"
        )
        if split in ("height", "width", "token", "batch") and draw(st.integers(0, 3)) == 0:
            entry += f", shares: {draw(st.sampled_from(SHARES[number]))}"
        entries.append(f"  - {{{entry}}}\n")
    microbatches = draw(st.sampled_from(MICROBATCHES.get(schedule, [1, 1, 2, 3])))
    replicas = draw(st.sampled_from([1, 1, 1, 2]))
    microbatch = draw(
        st.sampled_from([4, 4, 6, 12] if any(len(r) == 3 for r in rows) else [4, 4, 8])
    )
    text = (
        "schema_version: 1\nname: drawn\nmodel: {name: lenet5}\n"
        f"global_batch_size: {microbatch * microbatches * replicas}\n"
        f"n_microbatches: {microbatches}\nschedule: {schedule}\nreplicas: {replicas}\n"
        f"activation_checkpoint: {draw(st.sampled_from(['never', 'except_last', 'always']))}\n"
        f"optimizer_sharding: {draw(st.sampled_from(['none', 'zero1']))}\n"
        f"placement:\n{''.join(entries)}"
    )
    return text, model


def _features(program: Program, plan: Plan, text: str) -> set[str]:
    """What a pair of a graph and a plan has of what seldom goes together."""
    model = program.model
    found = {layer.kind for layer in model.layers}
    found |= {
        x for x in ("height", "width", "token", "input", "zero1", "always", "shares") if x in text
    }
    found |= {plan.schedule, f"{plan.replicas} replicas"}
    axes = [entry.grid.axes for entry in plan.placement]
    found |= {"grid of two" for grid in axes if len(grid) > 1}
    found |= {"replicated" for segment in program.segments if segment.replicated}
    halves = (".moments", ".parts", ".sum")
    placed = [layer.name for segment in program.segments for layer in segment.layers]
    found |= {half for half in halves for name in placed if name.endswith(half)}
    behind = [b for b in program.boundaries[1:] if not b.parameter]
    if any(b.consumer - b.producer > 1 for b in behind):
        found.add("skips a segment")
    for tie in (b for b in program.boundaries if b.parameter):
        owner, borrower = program.segments[tie.producer], program.segments[tie.consumer]
        found.add("tie")
        found |= {"tie over stages"} if owner.stage != borrower.stage else {"tie within a stage"}
        found |= {f"tie, {f}" for f in ("zero1", "ZB", "ZeroBubble", "replicas: 2") if f in text}
        found |= {"tie, microbatches"} if plan.n_microbatches > 1 else set()
        of_text = tie.parameter == "embedding.weight"
        cut = {"head": borrower, "embedding": owner} if of_text else {"weight": borrower}
        for what, segment in cut.items():
            boxes = {p.layers[0].tiles for p in segment.parts.values()}
            found |= {f"tie, {what} replicated"} if segment.replicated else set()
            found |= {f"tie, {what} cut"} if len(boxes) > 1 else set()
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("own_schedules")
def test_every_graph_under_every_plan_equals_one_device() -> None:
    seen: Counter[str] = Counter()

    @settings(max_examples=GRAPHS)
    @given(plans_over_graphs())
    def check(drawn: tuple[str, Model]) -> None:
        text, model = drawn
        try:
            plan = read_plan(text, "drawn.yaml")
            program = compile_plan(plan, model, dtype="float64")
        except InputError as error:
            seen["refused"] += 1
            seen["refused without place or remedy"] += not (error.location and error.remedy)
            return
        verdict = verify(program, RECIPE, update_examples={}, steps=2)
        assert verdict.passed, f"{model.declared}\n{text}\n{verdict.problems}"
        seen["accepted"] += 1
        seen.update(_features(program, plan, text))

    check()
    assert seen["accepted"] >= ACCEPTED_GRAPHS, seen
    assert not seen.pop("refused without place or remedy", 0)
    rare = [feature for feature, count in seen.items() if count < 3]
    assert not rare, f"hardly drawn: {rare}"
