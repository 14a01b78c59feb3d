"""The optimizers by name: what a plan's ``training.optimizer`` may ask for.

    name      kept for every parameter            update
    sgd2012   momentum                            the 2012 paper's, the rate inside the velocity
    sgd       momentum                            torch.optim.SGD
    adamw     exp_avg, exp_avg_sq, step           torch.optim.AdamW
    lars      momentum                            layer-wise adaptive rates

A new one is a file here and a row in the table. A description needs no torch: it is imported when
an update is built.
"""

from __future__ import annotations

from orchestrator.optimizers.adamw import AdamW
from orchestrator.optimizers.lars import Lars
from orchestrator.optimizers.optimizer import (
    Optimizer,
    Option,
    ReferenceUpdate,
    StateTensor,
    Update,
)
from orchestrator.optimizers.sgd import Sgd
from orchestrator.optimizers.sgd2012 import Sgd2012

OPTIMIZERS: dict[str, type[Optimizer]] = {o.name: o for o in (Sgd2012, Sgd, AdamW, Lars)}

__all__ = [
    "OPTIMIZERS", "AdamW", "Lars", "Optimizer", "Option", "ReferenceUpdate", "Sgd", "Sgd2012",
    "StateTensor", "Update",
]  # fmt: skip
