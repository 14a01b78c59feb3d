"""One colour for each part of a rank's step, the same in every picture, page and dashboard.

From the eight of Okabe and Ito, "Color Universal Design" (2008), which people with any common
colour blindness tell apart; the rest of a step is grey.
"""

from __future__ import annotations

COMPUTE = "#009E73"  # bluish green
EXPOSED = "#D55E00"  # vermillion
WAIT = "#E69F00"  # orange
BUBBLE = "#56B4E9"  # sky blue
LOADING = "#F0E442"  # yellow
OTHER = "#999999"

# In the order in which the parts are stacked; together they are the step.
SHARE_COLORS = {
    "compute_time_s": COMPUTE,
    "exposed_communication_time_s": EXPOSED,
    "wait_time_s": WAIT,
    "bubble_time_s": BUBBLE,
    "loading_time_s": LOADING,
    "other_time_s": OTHER,
}
SHARE_NAMES = {
    "compute_time_s": "computation",
    "exposed_communication_time_s": "exposed communication",
    "wait_time_s": "waiting for peers",
    "bubble_time_s": "pipeline bubble",
    "loading_time_s": "waiting for data",
    "other_time_s": "other",
}

# By kind of op: shades of computation's green, and of communication's vermillion.
OP_COLORS = {
    "F": "#66C7A8", "B": COMPUTE, "I": COMPUTE, "W": "#00755A", "STEP": "#4F6B63",
    "EXCHANGE_F": EXPOSED, "EXCHANGE_B": EXPOSED,
    "SEND_F": "#E0701F", "SEND_B": "#E0701F", "RECV_F": "#F0955A", "RECV_B": "#F0955A",
    "ALL_REDUCE": "#A34700", "REDUCE_SCATTER": "#A34700", "ALL_GATHER": "#A34700",
}  # fmt: skip

# For plans and runs, beside a marker and a dash of their own: none of these says a part of a step.
ITEM_COLORS = ("#0072B2", "#CC79A7", "#9A8B00", "#8B6BD6")
