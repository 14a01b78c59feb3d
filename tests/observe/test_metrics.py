"""The series of a run: breakdowns add up, the plan says which there are, pages show whole steps."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from hypothesis import given
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from orchestrator.errors import InputError
from orchestrator.observe import metrics_run
from orchestrator.observe.accounting import Accountant
from orchestrator.observe.metrics import Info, Page, RankTotals, RunLabels, RunTotals, stage_of
from orchestrator.observe.metrics_options import MetricsOptions
from orchestrator.observe.metrics_parts import GROUP, MOST_PEERS_TOLD, OP, Part, Parts, divide
from orchestrator.observe.metrics_run import RunMetrics
from orchestrator.observe.timeline import StepTimes
from orchestrator.program import Program
from orchestrator.program.ledger import Edge, edges, edges_by_kind
from orchestrator.program.ops import COMPUTE, FORWARD, REDUCE
from tests.observe.test_accounting import STAGED, is_loading, timelines
from tests.observe.timelines import PROGRAMS, Moments, step_times
from tests.program.small import LINEAR, small_program

LABELS = RunLabels("night", "small", "measured")
SHARES = ("compute", "exposed_communication", "wait", "bubble", "loading", "other")
Rows = dict[str, dict[tuple[str, ...], float]]


def sent_in_a_step(program: Program, steps: int = 1) -> dict[int, Counter[Edge]]:
    found: defaultdict[int, Counter[Edge]] = defaultdict(Counter)
    for edge, size in edges(program).items():
        found[edge.from_rank][edge] = steps * size
    return found


def parts_of(program: Program, times: StepTimes) -> list[Part]:
    account = Accountant(program).account(times)
    return Parts(program).of(times, account, sent_in_a_step(program))


def samples(page: Page) -> list[Sample]:
    """What Prometheus reads of a page; every family stands there once."""
    text = generate_latest(page.registry()).decode()
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families)
    return [sample for family in families for sample in family.samples]


def rows(page: Page) -> Rows:
    """Values by name and by those labels that not every series has, in the order of their names."""
    found: defaultdict[str, dict[tuple[str, ...], float]] = defaultdict(dict)
    for name, labels, value, *_ in samples(page):
        own = {k: v for k, v in labels.items() if k not in ("run", "plan", "stage", "source")}
        if not own["rank"]:
            del own["rank"]
        found[name][tuple(v for _, v in sorted(own.items()))] = value
    return found


# -- a rank's part of a step ----------------------------------------------------------------------


def test_who_is_waited_for() -> None:
    """Rank 0 has its gradients at 4, rank 1 at 6; the sum takes from 6 to 8."""
    moments: Moments = {
        "0 0F0": (0, 0, 2), "0 0B0": (2, 2, 4), "0 0ALL_REDUCE0": (4, 6, 8), "0 0STEP0": (8, 8, 9),
        "1 0F0": (0, 0, 3), "1 0B0": (3, 3, 6), "1 0ALL_REDUCE0": (6, 6, 8), "1 0STEP0": (8, 8, 9),
    }  # fmt: skip
    program = PROGRAMS["data"]
    first, second = parts_of(program, step_times(program, moments, {0: 9, 1: 9}))
    assert first.step_s == 9
    assert first.wait == {("1",): 2}
    assert second.wait == {}
    assert first.compute == {("forward",): 2, ("backward",): 2, ("update",): 1}
    assert first.communication == {("all_reduce", "1"): 2}
    assert first.sent == {("all_reduce", "1", "a"): 656}


def test_a_bubble_is_nobodys_and_transfers_at_once_share_the_time() -> None:
    """Rank 0 sends F1 from 4 to 5; r1 comes from 11 to 12 while B0 runs. See STAGED."""
    program = PROGRAMS["stages"]
    first, second = parts_of(program, step_times(program, STAGED, {0: 15, 1: 13}))
    assert (first.wait, first.bubble) == ({}, {(): 4})
    assert first.communication == {("send_forward", "1"): 3, ("receive_backward", "1"): 2}
    assert second.communication == {("receive_forward", "0"): 3, ("send_backward", "0"): 2}


def wait_slot_by_slot(program: Program, times: StepTimes, rank: int) -> dict[str, Fraction]:
    """Every second of waiting, divided among the peers that are late for what comes next."""
    ops = program.rank_ops(rank)
    compute = [op for op in ops if op.lane == COMPUTE]
    transfers = [op for op in ops if op.lane != COMPUTE]
    found: defaultdict[str, Fraction] = defaultdict(Fraction)
    for t in range(int(times.begin[rank]), int(times.finish[rank])):
        busy = [op for op in (*compute, *transfers) if times.start[op.id] <= t < times.end[op.id]]
        following = next((op for op in compute if times.start[op.id] > t), None)
        needs = map(program.op, following.needs) if following else transfers
        if is_loading(program, times, rank, t):
            continue
        late = [
            need
            for need in needs
            if need.lane != COMPUTE
            and not program.is_interstage(need)
            and times.ready[need.id] <= t < times.start[need.id]
        ]
        for need in late if not busy else ():
            assert len(need.peers) <= 2, "so it is clear who is waited for"
            peer = next(p for p in need.peers if p != rank)
            found[str(peer)] += Fraction(1, len(late))
    return dict(found)


@given(timelines())
def test_every_breakdown_adds_up_to_its_share(drawn: tuple[Program, StepTimes]) -> None:
    program, times = drawn
    account = Accountant(program).account(times)
    parts = Parts(program)
    for part in parts.of(times, account, sent_in_a_step(program)):
        shares, zero = account.ranks[part.rank], parts.zero(part.rank)
        assert part.step_s == shares.step_time_s
        assert sum(part.compute.values()) == pytest.approx(shares.compute_time_s)
        assert sum(part.communication.values()) == pytest.approx(shares.communication_time_s)
        waits = wait_slot_by_slot(program, times, part.rank)
        assert {peer: s for (peer,), s in part.wait.items() if s} == pytest.approx(
            {peer: float(s) for peer, s in waits.items()}
        )
        assert sum(waits.values()) == shares.wait_time_s
        assert part.loading == {(): shares.loading_time_s}
        for name in ("compute", "communication", "wait", "sent"):
            assert getattr(part, name).keys() <= getattr(zero, name).keys()
            assert not any(getattr(zero, name).values())


@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_bytes_by_op_are_those_of_the_program(name: str) -> None:
    """A sharded optimizer's edges carry two kinds of op, and are counted as one."""
    program = PROGRAMS[name]
    parts = Parts(program)
    for rank, sent in sent_in_a_step(program, steps=3).items():
        assert parts._by_op(sent) == {
            (OP[kind], str(edge.to_rank), edge.layer): 3 * size
            for (edge, kind), size in edges_by_kind(program).items()
            if edge.from_rank == rank
        }


def test_bytes_that_are_not_the_predicted_ones_are_told_to_the_byte() -> None:
    program = PROGRAMS["sharded"]
    (edge,) = (edge for edge in edges(program) if edge.from_rank == 0)
    strange = Edge(0, 1, "z", "forward")
    found = Parts(program)._by_op({edge: 1_000_001, strange: 7})
    assert found.pop(("forward", "1", "z")) == 7
    assert {op for op, _, _ in found} == {"reduce_scatter", "all_gather"}
    assert sum(found.values()) == 1_000_001


def test_in_a_large_group_it_is_not_told_who_was_last() -> None:
    ranks = MOST_PEERS_TOLD + 1
    program = small_program(LINEAR, f"layers: a..c, ranks: 0..{ranks - 1}, split: batch",
                            batch=ranks)  # fmt: skip
    zero = Parts(program).zero(0)
    assert zero.wait == {(GROUP,): 0.0}
    ops = list(program.ops())
    ready = [float(op.lane == REDUCE) for op in ops]
    late = [1.0 + (op.lane == REDUCE) for op in ops]
    times = StepTimes(
        0, ready, late, late, dict.fromkeys(program.ranks, 0.0), dict.fromkeys(program.ranks, 2.0)
    )
    for part in parts_of(program, times):
        assert part.wait == {(GROUP,): 1.0}


def test_time_that_several_claim_is_divided_among_them() -> None:
    claims = [(0.0, 4.0, "a"), (2.0, 6.0, "b"), (3.0, 6.0, "a"), (9.0, 9.0, "c")]
    # 0-2 a; 2-3 a, b; 3-4 a, b, a; 4-6 b, a
    assert divide(claims) == pytest.approx({"a": 2 + 1 / 2 + 2 / 3 + 1, "b": 1 / 2 + 1 / 3 + 1})
    assert divide(claims, [(1.0, 2.0), (3.0, 7.0)]) == pytest.approx({"a": 1.5, "b": 0.5})


# -- totals and pages -----------------------------------------------------------------------------


def some_parts(steps: int) -> tuple[Program, list[list[Part]]]:
    program = PROGRAMS["stages"]
    times = step_times(program, STAGED, {0: 15, 1: 13})
    return program, [parts_of(program, times) for _ in range(steps)]


def test_a_page_adds_up_the_steps() -> None:
    program, steps = some_parts(3)
    totals = [RankTotals(stage_of(program, r), Parts(program).zero(r)) for r in program.ranks]
    for parts in steps:
        for part in parts:
            totals[part.rank].add(part)
    found = rows(Page(LABELS, totals))
    assert found["orchestrator_step_seconds_sum"] == {("0",): 45, ("1",): 39}
    assert found["orchestrator_step_seconds_count"] == {("0",): 3, ("1",): 3}
    buckets = found["orchestrator_step_seconds_bucket"]
    assert (buckets["10.0", "0"], buckets["20.0", "0"], buckets["+Inf", "0"]) == (0, 3, 3)
    assert found["orchestrator_bubble_seconds_total"] == {("0",): 12, ("1",): 6}
    for rank in ("0", "1"):
        told = sum(
            value
            for share in SHARES
            for key, value in found[f"orchestrator_{share}_seconds_total"].items()
            if rank in key[-1:]
        )
        assert told == pytest.approx(found["orchestrator_step_seconds_sum"][rank,])
    bytes_sent = found["orchestrator_sent_bytes_total"].values()
    assert sum(bytes_sent) == 3 * sum(edges(program).values())
    labels = {frozenset(sample.labels) for sample in samples(Page(LABELS, totals))}
    assert all(names >= {"run", "plan", "rank", "stage", "source"} for names in labels)


def test_a_step_as_long_as_a_bucket_is_in_it() -> None:
    program, ((part, _),) = some_parts(1)
    totals = RankTotals("0", Parts(program).zero(0))
    for seconds in (0.1, 0.100001, 1e9):
        totals.add(Part(**{**vars(part), "step_s": seconds}))
    found = rows(Page(LABELS, [totals]))["orchestrator_step_seconds_bucket"]
    assert [found[bound, "0"] for bound in ("0.05", "0.1", "0.2", "500.0", "+Inf")] == [
        0,
        1,
        2,
        2,
        3,
    ]


def test_a_counter_never_falls() -> None:
    """A share is what is left of the step's time, so rounding can make it -1e-17.

    Prometheus would take the fall for a restart and count the whole total once more.
    """
    program, ((part, _),) = some_parts(1)
    totals = RankTotals("0", Parts(program).zero(0))
    totals.add(part)
    before = rows(Page(LABELS, [totals]))["orchestrator_other_seconds_total"]["0",]
    totals.add(Part(**{**vars(part), "other": {(): -1e-9}}))
    assert rows(Page(LABELS, [totals]))["orchestrator_other_seconds_total"]["0",] == before


def test_a_page_shows_whole_steps_while_others_are_counted() -> None:
    program, ((part, _),) = some_parts(1)
    totals = RankTotals("0", Parts(program).zero(0))
    ended = threading.Event()

    def count() -> None:
        while not ended.is_set():
            totals.add(part)

    thread = threading.Thread(target=count)
    thread.start()
    try:
        for _ in range(50):
            found = rows(Page(LABELS, [totals]))
            told = sum(
                sum(found[f"orchestrator_{share}_seconds_total"].values()) for share in SHARES
            )
            assert told == pytest.approx(found["orchestrator_step_seconds_sum"]["0",], rel=1e-9)
    finally:
        ended.set()
        thread.join()


def test_the_runs_own_series() -> None:
    run = RunTotals()
    before = rows(Page(LABELS, [], run))
    assert before.keys() == {
        f"orchestrator_{name}_total" for name in ("steps", "images", "restarts")
    }, "what is not known yet is not told"
    assert all(list(values.values()) == [0] for values in before.values())
    run.info = Info("0.1", "2.13", "2.60", "gloo", "cpu")
    run.add_step(16, 2.5, 0.01)
    run.add_step(16, float("inf"), 0.01)
    run.checkpoint_s = 0.25
    found = rows(Page(LABELS, [], run))
    assert found["orchestrator_steps_total"] == {(): 2}
    assert found["orchestrator_images_total"] == {(): 32}
    assert found["orchestrator_loss"] == {(): float("inf")}
    assert found["orchestrator_learning_rate"] == {(): 0.01}
    assert found["orchestrator_checkpoint_seconds"] == {(): 0.25}
    assert found["orchestrator_info"] == {("gloo", "cpu", "2.60", "2.13", "0.1"): 1}


def test_a_rank_in_several_stages_names_them_all() -> None:
    program = small_program(
        LINEAR,
        "layers: a..relu, ranks: [0], split: none",
        "layers: b, ranks: [1], split: none",
        "layers: c, ranks: [0], split: none",
    )
    assert [stage_of(program, rank) for rank in program.ranks] == ["0,2", "1"]


EIGHT = small_program(
    LINEAR,
    "layers: a..relu, ranks: [0, 1], split: channel",
    "layers: b..c, ranks: [2, 3], split: batch",
    batch=16,
    more="n_microbatches: 2\nreplicas: 2\noptimizer_sharding: zero1",
)


def test_the_series_of_eight_ranks_are_counted_and_do_not_grow() -> None:
    """Two stages of two ranks, twice: what there is follows from the plan, before the first step.

    Every rank has 21 series of the step's histogram (18 bounds, infinity, sum, count), 3 phases,
    exposed, bubble, loading and other, and its peak memory: 29. The rest is by what it sends to
    whom.
    """
    metrics = RunMetrics(EIGHT, LABELS, MetricsOptions(serve=False))
    metrics.peaks = dict.fromkeys(EIGHT.ranks, 1)
    pages = {totals.rank: Page(LABELS, [totals]) for totals in metrics.ranks.values()}
    before = {rank: set(map(str, identities(page))) for rank, page in pages.items()}
    sent = Counter(edge.from_rank for edge, _ in edges_by_kind(EIGHT))
    kinds = {
        rank: {
            (op.kind, op.peers[(op.peers.index(rank) + 1) % len(op.peers)])
            for op in EIGHT.rank_ops(rank)
            if op.lane == REDUCE
        }
        | {
            (op.kind in FORWARD, place < len(op.transfers.sends), peer)
            for op in EIGHT.rank_ops(rank)
            if op.transfers is not None
            for place, (peer, _) in enumerate(op.transfers.sides)
        }
        for rank in EIGHT.ranks
    }
    # Late can be the twin in the other replica; in the second stage the other batch half, too.
    waits = {0: 1, 1: 1, 2: 3, 3: 3, 4: 1, 5: 1, 6: 3, 7: 3}
    assert {rank: len(found) for rank, found in before.items()} == {
        rank: 29 + len(kinds[rank]) + sent[rank] + waits[rank] for rank in EIGHT.ranks
    }
    assert sum(map(len, before.values())) == 328
    times = any_times(EIGHT)
    account = Accountant(EIGHT).account(times)
    for _ in range(20):
        metrics.add_step(times, account, sent_in_a_step(EIGHT))
    assert {rank: set(map(str, identities(page))) for rank, page in pages.items()} == before


def identities(page: Page) -> list[tuple[str, list[tuple[str, str]]]]:
    """What makes series differ: name and labels, each only once."""
    found = [(name, sorted(labels.items())) for name, labels, *_ in samples(page)]
    assert len(set(map(str, found))) == len(found)
    return found


def any_times(program: Program) -> StepTimes:
    """A step in which every op waits a second and takes one, in order of id."""
    count = len(program.columns)
    ready, start, end = ([float(3 * i + k) for i in range(count)] for k in range(3))
    ends = dict.fromkeys(program.ranks, 3.0 * count)
    return StepTimes(0, ready, start, end, dict.fromkeys(program.ranks, 0.0), ends)


# -- serving --------------------------------------------------------------------------------------


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        text: str = answer.read().decode()
        return text


@contextmanager
def serving(
    program: Program = PROGRAMS["stages"], **options: Any
) -> Iterator[tuple[RunMetrics, list[dict[str, Any]]]]:
    """Metrics of a run over HTTP, and what ``metrics.json`` held, in turn."""
    metrics = RunMetrics(program, LABELS, MetricsOptions(**options))
    told: list[dict[str, Any]] = []
    metrics.on_change(told.append)
    try:
        yield metrics, told
    finally:
        metrics.close()


def test_the_driver_lists_every_page_and_takes_over_those_of_workers_that_ended() -> None:
    with serving() as (metrics, told):
        port = told[0]["discovery_url"].removeprefix("http://127.0.0.1:").removesuffix("/targets")
        assert told[0]["targets"] == []
        metrics.register(1, "http://127.0.0.1:9/metrics")
        assert told[-1]["targets"] == [{"rank": 1, "url": "http://127.0.0.1:9/metrics"}]

        def entry(who: str, address: str, path: str) -> dict[str, Any]:
            return {"targets": [address],
                    "labels": {"instance": f"night/{who}", "__metrics_path__": path}}  # fmt: skip

        own = entry("driver", f"127.0.0.1:{port}", "/metrics")
        listed = json.loads(fetch(told[0]["discovery_url"]))
        assert listed == [own, entry("rank 1", "127.0.0.1:9", "/metrics")]
        metrics.take_over()
        listed = json.loads(fetch(told[0]["discovery_url"]))
        assert listed == [own] + [
            entry(f"rank {rank}", f"127.0.0.1:{port}", f"/ranks/{rank}/metrics") for rank in (0, 1)
        ]
        for target in told[-1]["targets"]:
            text = fetch(target["url"])
            assert f'orchestrator_step_seconds_count{{plan="small",rank="{target["rank"]}"' in text
        assert "orchestrator_steps_total" in fetch(told[-1]["metrics_url"])
        for path in ("/", "/ranks/2/metrics", "/ranks/0"):
            with pytest.raises(urllib.error.HTTPError, match="404") as refused:
                fetch(f"http://127.0.0.1:{port}{path}")
            refused.value.close()
    with pytest.raises(urllib.error.URLError, match="refused"):
        fetch(told[-1]["metrics_url"])


def test_no_series_is_on_two_pages() -> None:
    with serving(EIGHT) as (metrics, told):
        metrics.take_over()
        urls = [told[-1]["metrics_url"], *(target["url"] for target in told[-1]["targets"])]
        lines = [line for url in urls for line in fetch(url).splitlines() if line[:1] != "#"]
        found = Counter(line.rsplit(" ", 1)[0] for line in lines)
        assert len(urls) == 9
        assert set(found.values()) == {1}


def test_a_port_that_is_taken_is_refused() -> None:
    with serving() as (_, told):
        port = int(told[0]["discovery_url"].split(":")[2].split("/")[0])
        with pytest.raises(InputError, match=f"cannot serve metrics at 127.0.0.1, port {port}"):
            RunMetrics(PROGRAMS["stages"], LABELS, MetricsOptions(port=port))


def test_nobody_is_waited_for_who_never_came() -> None:
    said: list[str] = []
    with serving() as (metrics, _):
        metrics.linger(said.append)
    assert said == []


def test_who_has_come_is_waited_for_until_he_has_seen_every_last_value(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metrics_run, "PATIENCE_S", 3600)
    with serving() as (metrics, told):
        metrics.take_over()
        fetch(told[0]["discovery_url"])
        lingering = threading.Event()
        thread = threading.Thread(target=metrics.linger, args=(lambda text: lingering.set(),))
        thread.start()
        assert lingering.wait(10)
        urls = [told[-1]["metrics_url"], *(target["url"] for target in told[-1]["targets"])]
        for url in urls:
            thread.join(0.2)
            assert thread.is_alive(), "a page has not been read yet"
            fetch(url)
        thread.join(10)
        assert not thread.is_alive()


def test_ctrl_c_ends_the_lingering_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("orchestrator.observe.metrics_run.time.sleep", interrupt)
    said: list[str] = []
    with serving(linger_s=3600) as (metrics, told):
        metrics.linger(said.append)
        assert said == [
            f"the last metrics stay at {told[0]['metrics_url']} for 3600 s; Ctrl-C ends this"
        ]


# -- pushing --------------------------------------------------------------------------------------


@contextmanager
def gateway(status: int = 200) -> Iterator[tuple[str, dict[str, str]]]:
    """A Pushgateway as far as pushing goes: its address, and what was put where."""
    got: dict[str, str] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            got[self.path] = self.rfile.read(int(self.headers["Content-Length"])).decode()
            self.send_response(status)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", got
        finally:
            server.shutdown()
            thread.join()


def counted(url: str) -> RunMetrics:
    program, ((*parts,),) = some_parts(1)
    metrics = RunMetrics(program, LABELS, MetricsOptions(serve=False, pushgateway=url))
    for part in parts:
        metrics.ranks[part.rank].add(part)
    metrics.run.add_step(4, 1.0, 0.1)
    return metrics


def test_the_last_values_are_pushed_by_run_and_rank() -> None:
    with gateway() as (url, got):
        assert counted(url).push() is None
    group = "/metrics/job/orchestrator"
    assert got.keys() == {f"{group}/run/night", *(f"{group}/rank/{r}/run/night" for r in (0, 1))}
    assert "orchestrator_steps_total" in got[f"{group}/run/night"]
    for rank, text in ((r, got[f"{group}/rank/{r}/run/night"]) for r in (0, 1)):
        names = {f.name for f in text_string_to_metric_families(text)}
        assert "orchestrator_sent_bytes" in names
        assert "orchestrator_steps" not in names
        assert f'rank="{rank}"' in text
        assert f'rank="{1 - rank}"' not in text


@pytest.mark.parametrize("status", [400, 500])
def test_a_gateway_that_refuses_is_told_of_and_no_more(status: int) -> None:
    with gateway(status) as (url, got):
        problem = counted(url).push()
    assert problem is not None
    assert problem.startswith(f"the metrics were not pushed to {url}: ")
    assert str(status) in problem
    assert len(got) == 1, "one answer is enough"


def test_no_gateway_at_the_address_is_told_of() -> None:
    problem = counted("http://127.0.0.1:1").push()
    assert problem is not None
    assert "127.0.0.1:1" in problem


def test_a_run_without_a_step_has_nothing_to_push() -> None:
    with gateway() as (url, got):
        options = MetricsOptions(serve=False, pushgateway=url)
        assert RunMetrics(PROGRAMS["stages"], LABELS, options).push() is None
    assert got == {}
