"""What the panels ask Prometheus. A part of a step has one name and one colour in all of them.

Series with a colon in their name are recorded by ``dashboards/prometheus/rules.yml``.

Two kinds of questions:

    over time      what the series are at each moment                                    timeseries
    :func:`last`   each rank's last value in the dashboard's time range, and then the    the rest
                   sum, mean or maximum of them

When a run ends, Prometheus takes its ranks' series for gone one after another. A sum over those
that are there at a moment would be that of the rank which went last, and afterwards nothing.
"""

from __future__ import annotations

from orchestrator.observe.dashboards.board import Variable
from orchestrator.observe.palette import (
    BUBBLE,
    COMPUTE,
    EXPOSED,
    ITEM_COLORS,
    LOADING,
    OTHER,
    WAIT,
)

# Label `part` of the recorded series, in the order in which they are stacked.
COLORS = {
    "compute": COMPUTE,
    "exposed": EXPOSED,
    "wait": WAIT,
    "bubble": BUBBLE,
    "loading": LOADING,
    "other": OTHER,
}
STEP_COLOR, BYTES_COLOR, IMAGES_COLOR, LOSS_COLOR = ITEM_COLORS
TRANSFER_COLOR = "#A34700"  # dark vermillion: communication, hidden or not
MEASURED_COLOR, PREDICTED_COLOR = ITEM_COLORS[:2]

ABOUT = {
    "compute": "Compute: the rank computes. High: good; the step is as short as the device allows.",
    "exposed": "Exposed: a transfer is in progress and the rank computes nothing. High: the links "
    "set the pace; send less, or send while computing.",
    "wait": "Wait: the rank is ready and a peer of its own stage is not. High: the peers have "
    "unequal work or unequal speed.",
    "bubble": "Bubble: the pipeline has nothing for the rank. High: too few microbatches for the "
    "number of stages, or unequal stages.",
    "loading": "Loading: the rank waits for images or labels. High: reading and decoding set the "
    "pace. Store images at the size that is read; --data imagefolder:PATH.",
    "other": "Other: the host between two ops. High: many small ops, or a busy processor.",
}
ABOUT_ALL = " ".join(ABOUT.values())

RUN_LABELS = "run, plan, source"
RANK_LABELS = "run, plan, rank, stage, source"

STEPS = "orchestrator_steps_total"
IMAGES = "orchestrator_images_total"
RANK_STEPS = "orchestrator_step_seconds_count"
SENT = "orchestrator_sent_bytes_total"
TRANSFERS = "orchestrator_communication_seconds_total"
WAITED = "orchestrator_wait_seconds_total"
PEAK_MEMORY = "orchestrator_peak_memory_bytes"
WORLD_SIZE = "orchestrator_world_size"
LOSS = "orchestrator:loss:last"
_RUN_START = "orchestrator:run_start:timestamp"
_LABELS_OF = {SENT: "op, peer, layer", TRANSFERS: "op, peer", WAITED: "peer"}

PICKED = 'plan=~"$plan", run="$run", source="$source"'


def last(series: str, by: str = RANK_LABELS) -> str:
    """The last value in the time range of each rank (or of each run, or each part of a rank).

    The maximum, because a target that a new run has taken over tells its first values under the
    name of the old one: two series of one counter, of which the lower one is out of date.
    """
    return f"max by ({by}) (last_over_time({series}[$__range]))"


def step(selected: str = PICKED) -> str:
    """Seconds a step, of each rank."""
    return f"orchestrator:step_seconds:mean{{{selected}}}"


def part(name: str, selected: str = PICKED) -> str:
    """Seconds a step that each rank spends on one part of it."""
    return f'orchestrator:part_seconds:mean{{{selected}, part="{name}"}}'


def share(name: str, selected: str = PICKED) -> str:
    """The same as a share of the rank's step."""
    return f'orchestrator:share:ratio{{{selected}, part="{name}"}}'


def images(selected: str = PICKED) -> str:
    """Images a second, of each run."""
    return f"max by ({RUN_LABELS}) (orchestrator:images_per_second:mean{{{selected}}})"


def loss(selected: str) -> str:
    """Of each run; a prediction has none, which is a line without points."""
    runs = f"max by ({RUN_LABELS}) ({STEPS}{{{selected}}})"
    return f"max by ({RUN_LABELS}) ({LOSS}{{{selected}}}) or {runs} * NaN"


def last_images(selected: str = PICKED) -> str:
    """Images a second, of each run, from what is last known of all its ranks."""
    counts = [last(f"{counter}{{{selected}}}", RUN_LABELS) for counter in (IMAGES, STEPS)]
    return f"{counts[0]} / ({counts[1]} > 0) / avg by ({RUN_LABELS}) ({last(step(selected))})"


def per_step(counter: str, by: str, selected: str = PICKED) -> str:
    """What a step adds to a counter of the ranks, by some of its labels.

    Exact at any moment: a rank's page shows whole steps only, and has both.
    """
    total = last(f"{counter}{{{selected}}}", f"{RANK_LABELS}, {_LABELS_OF[counter]}")
    steps = f"({last(f'{RANK_STEPS}{{{selected}}}')} > 0)"
    return f"sum by ({by}) ({total} / on ({RANK_LABELS}) group_left () {steps})"


def last_over_peers(selected: str = PICKED) -> str:
    """Last computation of each rank over the mean of the other ranks of its stage.

    The recorded series compares with those that are there: at a run's end with fewer and fewer.
    """
    own = last(part("compute", selected))
    stage = "run, plan, stage, source"
    others = f"(count by ({stage}) ({own}) - 1 > 0)"
    rest = f"(sum by ({stage}) ({own}) - on ({stage}) group_right () {own})"
    return f"{own} * on ({stage}) group_left () {others} / on ({RANK_LABELS}) {rest}"


def newest_first(runs: str) -> str:
    """A picker's query: runs, the one that began last first.

    Args:
        runs: an expression with the label ``run`` and the moment when each began.
    """
    return f"query_result(sort_desc(max by (run) ({runs})))"


def begun(selected: str) -> str:
    """When each run of the time range began, in seconds since 1970."""
    return f"last_over_time({_RUN_START}{{{selected}}}[$__range])"


def listed(selected: str = PICKED) -> str:
    """A picker's query for one text, such as ``2 of 8``: ranks that have series, and all ranks."""
    ranks = f"count({last(f'{RANK_STEPS}{{{selected}}}')})"
    world = f"(max({last(f'{WORLD_SIZE}{{{selected}}}', RUN_LABELS)}) or {ranks})"
    both = f'count_values("listed", {ranks}) * on () group_left (of) count_values("of", {world})'
    return f'query_result(label_join({both}, "text", " of ", "listed", "of"))'


OF_RUN = '/run="(.*)"}/'
PLAN = Variable("plan", "Plan", f"label_values({STEPS}, plan)", everything=True)
RUN = Variable("run", "Run", newest_first(begun('plan=~"$plan"')), OF_RUN)
# Of the dashboard that shows several. A name of its own, so that the way there from one that shows
# one run, and back, changes neither choice.
RUNS = Variable("runs", "Runs", newest_first(begun('plan=~"$plan"')), OF_RUN, everything=True)
SOURCE = Variable(
    "source", "Source", f'label_values({STEPS}{{run="$run"}}, source)', first="measured"
)
LISTED = Variable("listed", "Ranks", listed(), '/text="([^"]*)"/', hidden=True, in_url=False)
PICKERS = [PLAN, RUN, SOURCE, LISTED, RUNS.carried()]
