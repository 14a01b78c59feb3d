"""Does a program fit its devices' memory, and if not: which change of the plan would help?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from orchestrator.errors import InputError
from orchestrator.models.model import Model
from orchestrator.plan import Plan, read_plan
from orchestrator.program import Program, compile_plan
from orchestrator.program.ops import Op
from orchestrator.program.precision import precision_of
from orchestrator.schedules import SCHEDULES
from orchestrator.simulate.cluster import Cluster
from orchestrator.simulate.memory import RankMemory, peak_memory
from orchestrator.simulate.replicas import smallest_device


@dataclass(frozen=True)
class RankFit:
    """One rank on its device.

    Args:
        usable_bytes: the device's memory without what driver and libraries take.
        peak_op, parts: when the most is alive, and what it is.
    """

    rank: int
    device: str
    peak_bytes: int
    usable_bytes: int
    peak_op: Op
    parts: dict[str, int]

    @property
    def fits(self) -> bool:
        """Whether there is room."""
        return self.peak_bytes <= self.usable_bytes

    def __str__(self) -> str:
        largest = sorted(self.parts.items(), key=lambda item: -item[1])[:3]
        told = ", ".join(f"{name.replace('_', ' ')} {_gib(n)}" for name, n in largest)
        word = "fits" if self.fits else "does not fit"
        return (
            f"rank {self.rank} {word} {self.device}: needs {_gib(self.peak_bytes)} of "
            f"{_gib(self.usable_bytes)}, at {self.peak_op} ({told})"
        )


@dataclass(frozen=True)
class Remedy:
    """Changes of a plan, as ``--set`` takes them, and what they lead to.

    Args:
        settings: such as ``activation_checkpoint=always``.
        tightest: the rank that then has least to spare.
    """

    settings: tuple[str, ...]
    tightest: RankFit

    @property
    def fits(self) -> bool:
        """Whether every rank then fits."""
        return self.tightest.fits

    def __str__(self) -> str:
        options = " ".join(f"--set {setting}" for setting in self.settings)
        need, have = _gib(self.tightest.peak_bytes), _gib(self.tightest.usable_bytes)
        return f"{options}: {need} of {have}"


def fits(program: Program, cluster: Cluster, memories: Sequence[RankMemory]) -> list[RankFit]:
    """Ranks of a program against the devices that they run on.

    Args:
        memories: of listed ranks. Where replicas are folded, each is held against the smallest of
            its copies' devices.

    Raises:
        InputError: more ranks than devices.
    """
    cluster.check_room(program.world_size)
    return [
        RankFit(
            memory.rank, device.name, memory.peak_bytes, device.usable_bytes, memory.peak_op,
            memory.parts,
        )
        for memory in memories
        for device in [smallest_device(program, cluster, memory.rank)]
    ]  # fmt: skip


def tightest(cluster: Cluster, program: Program) -> RankFit:
    """The rank with least to spare."""
    memories = peak_memory(program, processor=cluster.on_processors)
    return min(fits(program, cluster, memories), key=lambda fit: fit.usable_bytes - fit.peak_bytes)


def what_would_fit(plan: Plan, model: Model, cluster: Cluster) -> list[Remedy]:
    """Changes of ``plan`` that make it fit, each compiled and walked; fewest changes first.

    Microbatches, recomputation and a sharded optimizer are tried, which leave the mathematics as it
    is. Where none of them is enough, halves of the global batch follow, which do not. A change that
    only adds to one that is already enough is left out. If nothing fits at all, the one that comes
    nearest is returned alone.
    """
    tried = list(_try(plan, model, cluster, _harmless(plan)))
    enough = _simplest([remedy for remedy in tried if remedy.fits])
    if not enough:
        smaller = list(_try(plan, model, cluster, _smaller_batches(plan)))
        enough = [remedy for remedy in smaller if remedy.fits][:1]
        tried += smaller
    if enough or not tried:
        return enough
    return [min(tried, key=lambda r: r.tightest.peak_bytes - r.tightest.usable_bytes)]


def _harmless(plan: Plan) -> list[tuple[str, ...]]:
    """Combinations of changes, fewest first."""
    most = plan.global_batch_size // plan.replicas
    counts = [plan.n_microbatches]
    while counts[-1] * 2 <= min(most, 64 * plan.n_microbatches):
        counts.append(counts[-1] * 2)
    # Some keep every microbatch until the last one's forward, so more of them save nothing.
    leaner = SCHEDULES[plan.schedule].leaner
    order = (f"schedule={leaner}",) if leaner else ()
    microbatches = [(), *((f"n_microbatches={n}", *order) for n in counts[1:])]
    levels = ("never", "except_last", "always")
    above = levels[levels.index(plan.activation_checkpoint) + 1 :]
    recompute = [(), *((f"activation_checkpoint={level}",) for level in above)]
    shard = [(), ("optimizer_sharding=zero1",)] if plan.optimizer_sharding == "none" else [()]
    found = [(*a, *b, *c) for a, b, c in product(microbatches, recompute, shard)]
    return sorted((settings for settings in found if settings), key=len)


def _smaller_batches(plan: Plan) -> list[tuple[str, ...]]:
    size = plan.global_batch_size
    found: list[tuple[str, ...]] = []
    while size % 2 == 0:
        size //= 2
        found.append((f"global_batch_size={size}",))
    return found


def _try(
    plan: Plan, model: Model, cluster: Cluster, candidates: Sequence[tuple[str, ...]]
) -> Iterator[Remedy]:
    """Those of the changes that make a legal plan, with what they need."""
    text, precision = plan.to_yaml(), precision_of(plan)
    enough: list[set[str]] = []
    for settings in candidates:
        if any(small <= set(settings) for small in enough):
            continue
        try:
            changed = read_plan(text, plan.name, plan.folder, settings)
            program = compile_plan(changed, model, dtype=precision, fold=True)
        except InputError:
            continue  # it does not divide, or the schedule does not fit the stages
        remedy = Remedy(settings, tightest(cluster, program))
        if remedy.fits:
            enough.append(set(settings))
        yield remedy


def _simplest(remedies: list[Remedy]) -> list[Remedy]:
    """Of those that differ in the number of microbatches only, the one with the fewest."""
    found: dict[tuple[str, ...], Remedy] = {}
    for remedy in remedies:
        kind = tuple(s for s in remedy.settings if not s.startswith("n_microbatches"))
        found.setdefault(kind, remedy)
    return list(found.values())


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"
