"""What the panels ask Prometheus. A part of a step has one name and one colour in all of them.

Series with a colon in their name are recorded by ``dashboards/prometheus/rules.yml``.
"""

from __future__ import annotations

from orchestrator.observe.dashboards.board import Variable
from orchestrator.observe.palette import BUBBLE, COMPUTE, EXPOSED, OTHER, WAIT

# Label `part` of the recorded series, in the order in which they are stacked.
COLORS = {"compute": COMPUTE, "exposed": EXPOSED, "wait": WAIT, "bubble": BUBBLE, "other": OTHER}

ABOUT = {
    "compute": "Compute: the rank computes. High: good; the step is as short as the device allows.",
    "exposed": "Exposed: a transfer is in progress and the rank computes nothing. High: the links "
    "set the pace; send less, or send while computing.",
    "wait": "Wait: the rank is ready and a peer of its own stage is not. High: the peers have "
    "unequal work or unequal speed.",
    "bubble": "Bubble: the pipeline has nothing for the rank. High: too few microbatches for the "
    "number of stages, or unequal stages.",
    "other": "Other: the host between two ops. High: many small ops, or a busy processor.",
}
ABOUT_ALL = " ".join(ABOUT.values())

STEPS = "orchestrator_steps_total"
SENT = "orchestrator_sent_bytes_total"
TRANSFERS = "orchestrator_communication_seconds_total"
WAITED = "orchestrator_wait_seconds_total"
PEAK_MEMORY = "orchestrator_peak_memory_bytes"

PLAN = Variable("plan", "Plan", STEPS, everything=True)
RUN = Variable("run", "Run", STEPS + '{plan=~"$plan"}')
SOURCE = Variable("source", "Source", STEPS + '{run="$run"}', first="measured")
PICKERS = [PLAN, RUN, SOURCE]
PICKED = 'plan=~"$plan", run="$run", source="$source"'


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
    return f"orchestrator:images_per_second:mean{{{selected}}}"


def per_step(counter: str, by: str, selected: str = PICKED) -> str:
    """What a step adds to a counter of the ranks, by some of its labels.

    Exact at any moment: a rank's page shows whole steps only, and has both.
    """
    steps = f"sum by (run, source, rank) (orchestrator_step_seconds_count{{{selected}}} > 0)"
    return f"sum by ({by}) ({counter}{{{selected}}} / on (run, source, rank) group_left () {steps})"
