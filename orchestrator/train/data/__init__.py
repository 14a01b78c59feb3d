"""Training data by sample index: real digits, made-up images, or a folder of one's own.

open_dataset --> Dataset --.
                            >-- load(step) --> Prefetcher --> the rank's batch
SampleOrder.indices(step) -'
"""

from __future__ import annotations

from orchestrator.errors import InputError
from orchestrator.models.model import Model
from orchestrator.train.data.dataset import Dataset, Indices, Shape
from orchestrator.train.data.digits import Digits, open_digits
from orchestrator.train.data.image_folder import ImageFolder, open_image_folder
from orchestrator.train.data.order import SampleOrder
from orchestrator.train.data.prefetch import Prefetcher
from orchestrator.train.data.synthetic import IMAGENET_SIZE, Synthetic

__all__ = [
    "Dataset",
    "Digits",
    "ImageFolder",
    "Indices",
    "Prefetcher",
    "SampleOrder",
    "Synthetic",
    "open_dataset",
    "open_for",
]

_KINDS = "digits, synthetic, synthetic:N or imagefolder:PATH"


def open_dataset(
    spec: str,
    *,
    shape: Shape,
    classes: int,
    seed: int,
    labelled: Shape = (),
    vocabulary: int = 0,
) -> Dataset:
    """The data that ``--data SPEC`` names, for a model that reads examples of ``shape``.

    Args:
        spec: ``digits``, ``synthetic`` (as many samples as ImageNet trains on), ``synthetic:N`` or
            ``imagefolder:PATH``.
        shape: of one example: (channels, height, width) of images. Synthetic data has any shape,
            digits are also there as their (64,) pixels.
        classes: the model's outputs; the data may have fewer classes, not more.
        seed: not negative; what made-up images are drawn from.
        labelled: shape of an example's labels: () for one, (tokens,) for one a token.
        vocabulary: of a model that reads token numbers, how many there are; else 0.

    Raises:
        InputError: an unknown spec, data that cannot be read or has no such shape, or more classes
            than the model has.
    """
    kind, colon, rest = spec.partition(":")
    location = f"--data {spec}"
    if (labelled or vocabulary) and kind in ("digits", "imagefolder"):
        reads = "token numbers" if vocabulary else "sequences"
        raise InputError(
            f"the model reads {reads} and has a label for each token; {kind} has one an image",
            location,
            "--data synthetic",
        )
    if kind == "digits" and not colon:
        return open_digits(shape, classes)
    if kind == "synthetic":
        size = _count(rest, location) if colon else IMAGENET_SIZE
        return Synthetic(size, shape, classes, seed, labelled, vocabulary)
    if kind == "imagefolder":
        return open_image_folder(rest, shape, classes)
    if kind == "hf":
        raise InputError(
            "Hugging Face data sets are not built in yet",
            location,
            "store it as PATH/class/image.png and pass --data imagefolder:PATH, or --data digits",
        )
    raise InputError("no such data", location, f"one of {_KINDS}")


def open_for(model: Model, spec: str, seed: int) -> Dataset:
    """The data that ``--data SPEC`` names, as a model reads it; see :func:`open_dataset`."""
    return open_dataset(
        spec, shape=model.input_shape, classes=model.classes, seed=seed,
        labelled=model.labels.shape, vocabulary=model.vocabulary if model.input.integer else 0,
    )  # fmt: skip


def _count(text: str, location: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise InputError(
            f"the number of images must be a whole number above 0, not {text!r}",
            location,
            "for instance --data synthetic:10000",
        )
    return int(text)
