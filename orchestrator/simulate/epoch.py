"""An epoch of a data set: how many steps it has, and when that cannot be said.

As in a run, an epoch has whole batches only: what is left after the last one is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import InputError
from orchestrator.models.model import Model

IMAGENET_2012 = 1_281_167
"""Training images of ILSVRC-2012 (Russakovsky et al., IJCV 2015, table 2)."""
DIGITS = 1_797
"""Images of scikit-learn's digits."""


@dataclass(frozen=True)
class DataSet:
    """What an epoch is of.

    Args:
        name: such as ``imagenet``, as ``--data`` has it.
        examples: how many; None if it is not known which data set is meant.
        unknown: why not.
    """

    name: str
    examples: int | None
    unknown: str = ""

    @property
    def kind(self) -> str:
        """The name up to its colon: that under which a calibration has its loading."""
        return self.name.partition(":")[0]

    def epoch(self, batch: int) -> Epoch:
        """The epoch in steps of so many examples."""
        if self.examples is None:
            return Epoch(self, None, self.unknown)
        if batch > self.examples:
            data = self.name or "the data"
            why = f"a batch of {batch:,} does not fit into {data}, which has {self.examples:,}"
            return Epoch(self, None, why)
        return Epoch(self, self.examples // batch)


@dataclass(frozen=True)
class Epoch:
    """One pass over a data set.

    Args:
        steps: whole batches; None where there is no epoch.
        because: why there is none.
    """

    data: DataSet
    steps: int | None
    because: str = ""

    def described(self) -> Mapping[str, Any]:
        """For JSON: ``data, examples, steps``, and ``because`` where there are no steps."""
        return {
            "data": self.data.name or None,
            "examples": self.data.examples,
            "steps": self.steps,
            "because": self.because or None,
        }


def usual_data(model: Model) -> DataSet:
    """The data set that a network of this shape is made for.

    ImageNet's for 1,000 classes of colour images, the digits' for ten classes of gray ones.
    """
    channels = model.input_shape[0] if len(model.input_shape) == 3 else 0
    if (channels, model.classes) == (3, 1000):
        return DataSet("imagenet", IMAGENET_2012)
    if (channels, model.classes) == (1, 10):
        return DataSet("digits", DIGITS)
    why = f"no data set is known for {model.name} with {model.classes:,} classes"
    return DataSet("", None, f"{why}: --data or --examples")


def data_of_run(summary: Mapping[str, Any]) -> DataSet | None:
    """The data set of a run, from its summary; None where that names none."""
    spec = summary.get("data")
    if spec is None:
        return None
    unknown = DataSet(str(spec), None, f"how many images {spec} has is not known here")
    return data_set(str(spec)) or unknown


def data_set(spec: str) -> DataSet | None:
    """The data set that ``--data`` names, if its size is known without reading it.

    Raises:
        InputError: a number of made-up images that is none.
    """
    kind, colon, rest = spec.partition(":")
    if kind == "synthetic" and colon:
        if not (rest.isascii() and rest.isdigit() and 0 < int(rest[:19]) < 2**63):
            raise InputError(
                f"the number of images must be a whole number above 0, not {rest!r}",
                f"--data {spec}",
                "--data synthetic:10000",
            )
        return DataSet(spec, int(rest))
    sizes = {"imagenet": IMAGENET_2012, "digits": DIGITS, "synthetic": IMAGENET_2012}
    return DataSet(kind, sizes[kind]) if kind in sizes and not colon else None
