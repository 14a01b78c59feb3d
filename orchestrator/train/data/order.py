"""Which samples make up a step's batch: a fresh shuffle each epoch, drawn from (seed, epoch).

size 7, batch 3      step 0   step 1            step 2   step 3
                    [4 0 6]  [2 5 1]   3 left  [1 6 2]  [0 3 5]   4 left  ...
                    `--------- epoch 0 -----'  `--------- epoch 1 -----'
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from orchestrator.errors import InputError


class SampleOrder:
    """The samples of every step, the same for all ranks and all plans.

    What is left of an epoch after its last whole batch is dropped, since a plan's byte ledger holds
    for one batch size; the next shuffle leaves out others.

    Args:
        size: samples in the data set.
        global_batch_size: samples a step, over all ranks.
        seed: not negative; another seed gives another order.

    Raises:
        InputError: a batch larger than the data.
    """

    def __init__(self, size: int, global_batch_size: int, seed: int) -> None:
        if size < 1 or global_batch_size < 1 or seed < 0:
            raise ValueError(f"{size=} and {global_batch_size=} must be positive, {seed=} not < 0")
        if global_batch_size > size:
            raise InputError(
                f"a batch of {global_batch_size:,} images does not fit into the data, which has"
                f" {size:,}",
                "global_batch_size",
                f"take a smaller batch, --set global_batch_size={size} or less, or more data",
            )
        self.size = size
        self.global_batch_size = global_batch_size
        self.seed = seed
        self._shuffled: tuple[int, npt.NDArray[np.int64]] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in one pass over the data."""
        return self.size // self.global_batch_size

    def indices(self, step: int) -> npt.NDArray[np.int64]:
        """The sample indices of step ``step`` (from 0), shape (global_batch_size,), no one twice.

        Any step may be asked for at any time: a resumed run goes on where it was.
        """
        if step < 0:
            raise ValueError(f"{step=} is negative")
        epoch, batch = divmod(step, self.steps_per_epoch)
        first = batch * self.global_batch_size
        return self._epoch(epoch)[first : first + self.global_batch_size].copy()

    def _epoch(self, epoch: int) -> npt.NDArray[np.int64]:
        """The shuffle of ``epoch``, shape (size,); the last one asked for is kept."""
        kept = self._shuffled  # read once: another thread may replace it
        if kept is None or kept[0] != epoch:
            stream = np.random.Generator(
                np.random.Philox(np.random.SeedSequence([self.seed, epoch]))
            )
            kept = (epoch, stream.permutation(self.size).astype(np.int64, copy=False))
            self._shuffled = kept
        return kept[1]
