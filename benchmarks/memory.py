"""Predicted against measured peak memory on the CPU: ``python -m benchmarks.memory [--quick]``.

Every family of networks under every split that suits it. ``--only TEXT`` takes the rows whose
"family, split" contains the text. A row is the rank whose prediction is farthest off.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import mean

import torch

from benchmarks.families import gpt, inception, llama, resnet, separable, squeeze_excitation
from benchmarks.memory_meter import measured_peaks
from orchestrator.models import Model
from orchestrator.plan import read_plan
from orchestrator.program import Program, compile_plan
from orchestrator.simulate.memory import peak_memory


@dataclass(frozen=True)
class Row:
    """One plan of one network.

    Args:
        entries: of the plan's placement.
        more: further lines of the plan.
    """

    family: str
    split: str
    model: Model
    batch: int
    entries: tuple[str, ...]
    more: str = ""

    def __str__(self) -> str:
        return f"{self.family}, {self.split}"

    def program(self) -> Program:
        """The plan, compiled."""
        placement = "".join(f"  - {{{entry}}}\n" for entry in self.entries)
        head = "schema_version: 1\nname: benchmark\nmodel: {name: lenet5}\n"
        text = f"{head}global_batch_size: {self.batch}\nplacement:\n{placement}{self.more}"
        return compile_plan(read_plan(text, "benchmarks/memory.py"), self.model)


def over(split: str, ranks: str = "[0, 1]") -> tuple[str, ...]:
    """One entry for all layers."""
    return (f"layers: all, ranks: {ranks}, split: {split}",)


def stages(model: Model, last: str) -> tuple[str, ...]:
    """Two stages, the first of which ends with a layer."""
    names = [layer.name for layer in model.layers if not layer.layer.is_loss]
    cut = names.index(last)
    return (
        f"layers: {names[0]}..{last}, ranks: [0], split: none",
        f"layers: {names[cut + 1]}..{names[-1]}, ranks: [1], split: none",
    )


def over_height(model: Model) -> tuple[str, ...]:
    """Images by their rows over two ranks, vectors by examples; an entry for each run of either."""
    layers = [layer for layer in model.layers if not layer.layer.is_loss]
    runs = [(has, list(run)) for has, run in groupby(layers, lambda x: "height" in x.output.axes)]
    return tuple(
        f"layers: {run[0].name}..{run[-1].name}, ranks: [0, 1], "
        f"split: {'height' if has else 'batch'}"
        for has, run in runs
    )


ONE = over("none", "[0]")
MICROBATCHES = "n_microbatches: 4\nschedule: {}\n"
RECOMPUTED = f"{MICROBATCHES.format('GPipe')}activation_checkpoint: always\n"


def rows(*, small: bool = False) -> Iterator[Row]:
    """Every family under every split.

    Args:
        small: a quarter of the batch and half the size: peaks of a few MB.
    """
    batch = 8 if small else 32
    yield from images(batch, 32 if small else 64)
    yield from sequences(batch, 32 if small else 64)


def images(batch: int, size: int) -> Iterator[Row]:
    """Of the networks of convolutions."""
    net = resnet(size=size)
    grouped = resnet(size=size, group=batch // 4)
    for split, model, entries, more in (
        ("one", net, ONE, ""),
        ("one, recomputed", grouped, ONE, RECOMPUTED),
        ("batch", net, over("batch"), ""),
        ("batch, groups whole", grouped, over("batch"), ""),
        ("channel", net, over("channel"), ""),
        ("height", net, over_height(net), ""),
        ("batch x channel", net, over("{batch: 2, channel: 2}", "[0, 1, 2, 3]"), ""),
        ("stages", net, stages(net, "blocks.1.conv2"), ""),
        ("stages, 1F1B", grouped, stages(grouped, "blocks.0.relu"), MICROBATCHES.format("1F1B")),
        ("stages, ZB-H1", grouped, stages(grouped, "blocks.0.relu"), MICROBATCHES.format("ZB-H1")),
    ):
        yield Row("resnet", split, model, batch, entries, more)
    net = inception(size=size // 2, width=8)
    towers = (
        "layers: stem..relu, ranks: [0, 1], split: batch",
        "layers: [a1..a, c1..c], ranks: [0], split: none",
        "layers: [b1..b, d1..d], ranks: [1], split: none",
        "layers: joined..fc, ranks: [0, 1], split: batch",
    )
    for split, entries, more in (
        ("one", ONE, ""),
        ("one, recomputed", ONE, RECOMPUTED),
        ("batch", over("batch"), ""),
        ("channel", over("channel"), ""),
        ("height", over_height(net), ""),
        ("towers", towers, ""),
        ("stages, 1F1B", stages(net, "b"), MICROBATCHES.format("1F1B")),
    ):
        yield Row("inception", split, net, batch, entries, more)
    se = (squeeze_excitation(size=size // 2, group=n) for n in (None, batch // 4))
    depth = (separable(size=size, group=n) for n in (None, batch // 4))
    for (net, grouped), cut in ((se, "blocks.0.norm2"), (depth, "depth1")):
        for split, model, entries, more in (
            ("one", net, ONE, ""),
            ("one, recomputed", grouped, ONE, RECOMPUTED),
            ("batch", net, over("batch"), ""),
            ("channel", net, over("channel"), ""),
            ("height", net, over_height(net), ""),
            ("stages", net, stages(net, cut), ""),
        ):
            yield Row(net.name, split, model, batch, entries, more)


def sequences(batch: int, tokens: int) -> Iterator[Row]:
    """Of the transformers."""
    for name, net in (("gpt", gpt(tokens=tokens)), ("llama", llama(tokens=tokens))):
        for split, entries, more in (
            ("one", ONE, ""),
            ("one, recomputed", ONE, RECOMPUTED),
            ("batch", over("batch"), ""),
            ("channel", over("channel"), ""),
            ("token", over("token"), ""),
            ("token x channel", over("{token: 2, channel: 2}", "[0, 1, 2, 3]"), ""),
            ("stages", stages(net, "blocks.0.sum2"), ""),
            ("stages, 1F1B", stages(net, "blocks.0.sum2"), MICROBATCHES.format("1F1B")),
            ("stages, ZB-H1", stages(net, "blocks.0.sum2"), MICROBATCHES.format("ZB-H1")),
        ):
            yield Row(name, split, net, batch, entries, more)


@dataclass(frozen=True)
class Found:
    """Of one rank, in bytes."""

    rank: int
    measured: int
    predicted: int

    @property
    def error(self) -> float:
        """Relative, above 0 where too much is predicted."""
        return self.predicted / self.measured - 1


def found(row: Row) -> list[Found]:
    """Run two steps of a row's plan, and predict its peaks."""
    program = row.program()
    predicted = peak_memory(program, processor=True)
    measured = measured_peaks(program)
    return [
        Found(rank.rank, bytes_measured, rank.peak_bytes)
        for rank, bytes_measured in zip(predicted, measured, strict=True)
    ]


def main(arguments: Sequence[str] = ()) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller networks")
    parser.add_argument("--only", default="", help='rows whose "family, split" contains this')
    options = parser.parse_args(arguments)
    os.environ["KINETO_LOG_LEVEL"] = "99"  # it tells of every start and stop
    torch.set_num_threads(1)
    print("memory: peaks of one step on the CPU, one thread; the rank that is farthest off")
    print("| network | split | rank | measured MB | predicted MB | error |\n" + "|---" * 6 + "|")
    errors = []
    for row in rows(small=options.quick):
        if options.only not in str(row):
            continue
        worst = max(found(row), key=lambda rank: abs(rank.error))
        errors.append(worst.error)
        print(
            f"| {row.family} | {row.split} | {worst.rank} | {worst.measured / 1e6:.2f} "
            f"| {worst.predicted / 1e6:.2f} | {worst.error:+.1%} |", flush=True,
        )  # fmt: skip
    worst_error = max(errors, key=abs)
    within = sum(abs(error) <= 0.03 for error in errors)
    print(f"mean absolute error {mean(map(abs, errors)):.1%}, worst {worst_error:+.1%}; "
          f"{within} of {len(errors)} within 3 %")  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
