"""The byte ledger against figures derived by hand, and its ring formula against a ring."""

from __future__ import annotations

import pytest

from orchestrator.models import Model, build_model
from orchestrator.plan import load_plan, shipped_names
from orchestrator.program import Program, compile_plan
from orchestrator.program.ledger import (
    Edge,
    activation_bytes,
    by_sender,
    edges,
    gradient_bytes,
    ring_bytes,
)
from tests.program.small import LINEAR, small_plan


def compiled(name: str, *overrides: str, fold: bool = False) -> Program:
    plan = load_plan(name, overrides)
    return compile_plan(plan, model_of(plan.model.name), fold=fold)


def model_of(name: str | None) -> Model:
    assert name is not None
    return build_model(name, {})


def test_the_columns_of_2012_exchange_60_030_976_bytes_a_batch() -> None:
    """128 images, 4 bytes: 21,632 values an image before conv3, 4,608 before fc6, 2,048 before fc7
    each way, and 2,048 before fc8 to the rank that has it; the backward is the reverse."""
    found = edges(compiled("krizhevsky2012"))
    expected = {}
    for layer, values in (("conv3", 21_632), ("fc6", 4_608), ("fc7", 2_048)):
        for direction in ("forward", "backward"):
            expected[Edge(0, 1, layer, direction)] = values * 128 * 4
            expected[Edge(1, 0, layer, direction)] = values * 128 * 4
    expected[Edge(1, 0, "fc8", "forward")] = 2_048 * 128 * 4
    expected[Edge(0, 1, "fc8", "backward")] = 2_048 * 128 * 4
    assert dict(found) == expected
    assert activation_bytes(found) == 60_030_976
    assert gradient_bytes(found) == 0
    assert by_sender(found) == {0: (30_015_488, 0), 1: (30_015_488, 0)}


def test_the_columns_of_2012_hold_their_halves() -> None:
    program = compiled("krizhevsky2012")
    parts = [[s.parts[r] for s in program.segments if r in s.parts] for r in (0, 1)]
    assert [sum(p.parameters for p in mine) for mine in parts] == [32_531_112, 28_434_112]
    macs = [sum(p.macs_per_example for p in mine) for mine in parts]
    assert macs[1] == (724_406_816 - 4_096_000) // 2
    assert sum(macs) == 724_406_816


def test_data_parallel_on_two_sends_all_gradients_whatever_the_batch() -> None:
    for batch in (128, 1040):
        found = edges(compiled("data-parallel", f"global_batch_size={batch}"))
        assert gradient_bytes(found) == 487_721_792
        assert activation_bytes(found) == 0
        assert by_sender(found) == {0: (0, 243_860_896), 1: (0, 243_860_896)}


def test_columns_send_less_than_gradients_up_to_a_batch_of_1_039() -> None:
    each = 60_030_976 // 128
    assert each == 468_992
    assert 1_039 * each < 487_721_792 < 1_040 * each


@pytest.mark.parametrize(
    ("name", "flop"),
    [("single", 4.136e9), ("krizhevsky2012-half", 2.244e9), ("one-weird-trick-gather", 4.145e9)],
)
def test_training_takes_the_published_operations_an_image(name: str, flop: float) -> None:
    """Six operations a multiply-add, less the input gradient of conv1, which nobody wants."""
    program = compiled(name)
    total = sum(op.flops for op in program.ops()) / 128
    assert abs(total - flop) < 0.0006e9


@pytest.mark.parametrize("n", range(2, 10))
@pytest.mark.parametrize("values", [1, 2, 7, 8, 60, 61, 97])
def test_the_ring_formula_counts_what_a_ring_sends(n: int, values: int) -> None:
    """Patarasuk and Yuan 2009: chunks go round, summed on the way, then round again."""
    bounds = [values * i // n for i in range(n + 1)]
    held = [[[10.0**r] * (bounds[c + 1] - bounds[c]) for c in range(n)] for r in range(n)]
    sent = {kind: [0] * n for kind in ("REDUCE_SCATTER", "ALL_GATHER")}
    for kind in sent:
        for turn in range(n - 1):
            # what each rank sends is fixed before anyone receives
            first = 0 if kind == "REDUCE_SCATTER" else 1
            chunks = [(r + first - turn) % n for r in range(n)]
            moving = [list(held[r][chunks[r]]) for r in range(n)]
            for r in range(n):
                target = held[(r + 1) % n][chunks[r]]
                for i, value in enumerate(moving[r]):
                    target[i] = target[i] + value if kind == "REDUCE_SCATTER" else value
                sent[kind][r] += len(moving[r])
    whole = sum(10.0**r for r in range(n))
    assert all(value == whole for rank in held for chunk in rank for value in chunk)
    for r in range(n):
        for kind, counts in sent.items():
            assert ring_bytes(kind, values, n, r) == counts[r]
        together = sum(counts[r] for counts in sent.values())
        assert ring_bytes("ALL_REDUCE", values, n, r) == together


def test_a_ring_sends_each_chunk_all_but_once_each_way() -> None:
    for n in range(2, 10):
        for values in (1, 5, 64, 1001):
            total = sum(ring_bytes("ALL_REDUCE", values, n, r) for r in range(n))
            assert total == 2 * (n - 1) * values


def test_gradients_go_to_the_next_of_the_group() -> None:
    plan = small_plan("layers: a..c, ranks: 0..2, split: batch", batch=6)
    found = edges(compile_plan(plan, LINEAR))
    # 164 values in chunks of 54, 55, 55; a rank leaves out one chunk in each half
    assert found == {
        Edge(0, 1, "a", "gradient"): (164 - 55 + 164 - 55) * 4,
        Edge(1, 2, "a", "gradient"): (164 - 55 + 164 - 54) * 4,
        Edge(2, 0, "a", "gradient"): (164 - 54 + 164 - 55) * 4,
    }


@pytest.mark.parametrize("name", shipped_names("partitions"))
def test_every_forward_byte_comes_back(name: str) -> None:
    """The backward of an exchange is the transposed exchange, so it sends as much the other way."""
    found = edges(compiled(name))
    for edge, size in found.items():
        if edge.direction == "forward":
            assert found[Edge(edge.to_rank, edge.from_rank, edge.layer, "backward")] == size
    assert activation_bytes(found) + gradient_bytes(found) == sum(found.values())


def test_folding_lists_the_first_replica_as_it_is_in_the_whole() -> None:
    whole, folded = compiled("pipeline-x-data"), compiled("pipeline-x-data", fold=True)
    assert (len(folded.order), folded.world_size, folded.folded) == (2, 4, True)
    first = {e: n for e, n in edges(whole).items() if e.from_rank < 2}
    assert dict(edges(folded)) == first
