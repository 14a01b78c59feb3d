"""Memory of a layer that is several products one after another, as columns of a convolution.

Forward: a product's input channels are put together in a copy if they are several runs, which is
kept, or laid straight for a moment if they are one run of many. The outputs are joined at the end.
Backward: the last product first. Each gives the gradient of the channels that it read, which is
added, in a tensor of the whole input's size, to the gradients of the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from orchestrator.models.layer_costs import Copies


class Turn(NamedTuple):
    """One product, in bytes.

    Args:
        read, computed: its input and output.
        every: it reads all channels of the layer's input.
        runs: of its input channels, where they lie in that.
        copies: of its own.
    """

    read: int
    computed: int
    every: bool
    runs: int
    copies: Copies

    @property
    def gathered(self) -> int:
        """The copy that is kept."""
        return self.read if self.runs > 1 else 0

    @property
    def straight(self) -> int:
        """The copy that is needed for a moment."""
        return 0 if self.every or self.gathered else self.read


def forward_extra(turns: Sequence[Turn], after: int) -> int:
    """Bytes above the output and the copies that are kept."""
    now = most = 0
    for turn in turns:
        now += turn.gathered + turn.computed
        most = max(most, now + turn.straight + turn.copies.forward)
    return max(most, now + after) - after - sum(turn.gathered for turn in turns)


def backward_extra(turns: Sequence[Turn], before: int) -> int:
    """Bytes above the gradients of input and weights."""
    now = most = total = 0
    for turn in reversed(turns):
        product = turn.computed + turn.straight + turn.read + turn.copies.backward
        most = max(most, now + total + product)
        if not turn.every:
            most = max(most, now + total + turn.read + before)
        now -= turn.gathered
        total = before
    return most - before
