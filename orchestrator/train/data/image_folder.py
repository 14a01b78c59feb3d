"""Images in ImageNet's layout, a folder for each class: PATH/n01440764/n01440764_10026.JPEG."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from orchestrator.errors import InputError
from orchestrator.train.data.dataset import (
    Indices,
    Shape,
    by_sides,
    checked_indices,
    refuse_more_classes,
    refuse_shape,
)
from orchestrator.train.data.decode import EXTENSIONS, load_image, unreadable

_LAYOUT = "the layout is PATH/class/image.jpg, with a folder for each class"
_DECODE_THREADS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True, eq=False)
class ImageFolder:
    """A folder of class folders.

    Args:
        root: the folder of class folders.
        class_names: the class folders' names, sorted; a class's place here is its label.
        file_names: (size,) names of the files, class after class, sorted within each.
        targets: (size,) int64, the class of each file.
        shape: to give: (channels, height, width), 3 channels for RGB, 1 for gray.
    """

    root: Path
    class_names: tuple[str, ...]
    file_names: tuple[str, ...]
    targets: npt.NDArray[np.int64]
    shape: Shape
    name: str = "imagefolder"

    @property
    def description(self) -> str:
        return (
            f"imagefolder: {self.size:,} images in {self.classes:,} classes from {self.root},"
            f" cropped to {by_sides(self.shape)}"
        )

    @property
    def size(self) -> int:
        return len(self.file_names)

    @property
    def classes(self) -> int:
        return len(self.class_names)

    def path(self, index: int) -> Path:
        """The file of sample ``index``."""
        return self.root / self.class_names[int(self.targets[index])] / self.file_names[index]

    def images(self, indices: Indices) -> Tensor:
        """(n, *shape) float32, decoded on a few threads.

        Raises:
            InputError: a file is broken, cut short, not an image or not to be read.
        """
        wanted = checked_indices(indices, self.size).tolist()
        batch = np.empty((len(wanted), *self.shape), dtype=np.float32)

        def fill(row: int) -> None:
            batch[row] = load_image(self.path(wanted[row]), self.shape)

        # Pillow decodes and resizes without the interpreter lock, so threads are enough.
        with ThreadPoolExecutor(_DECODE_THREADS, "decode") as pool:
            for _ in pool.map(fill, range(len(wanted))):
                pass  # takes results in order: of two broken files the first is always the one told
        return torch.from_numpy(batch)

    def labels(self, indices: Indices) -> Tensor:
        """(n,) int64."""
        return torch.from_numpy(self.targets[checked_indices(indices, self.size)])


def open_image_folder(path: str, shape: Shape, classes: int) -> ImageFolder:
    """The images under ``path``; only names are read now, pixels when they are asked for.

    Hidden files and folders (``.name``) are skipped; so are files that are no images beside the
    class folders, such as a README or a list of labels.

    Raises:
        InputError: not a folder of two or more class folders that hold images and nothing else,
            more classes than the model has, or a model that reads neither RGB nor gray images.
    """
    location = f"--data imagefolder:{path}"
    if not path:
        raise InputError("a folder must follow", location, _LAYOUT)
    if len(shape) != 3 or shape[0] not in (1, 3):
        has = "images of 3 channels (RGB) or 1 (gray) x height x width"
        raise refuse_shape("an image folder", has, shape, location)
    root = Path(path).expanduser()
    class_names = _class_names(root)
    refuse_more_classes(str(root), len(class_names), classes, location)
    by_class = [_file_names(root / name) for name in class_names]
    return ImageFolder(
        root,
        class_names,
        tuple(name for names in by_class for name in names),
        np.repeat(np.arange(len(by_class), dtype=np.int64), [len(names) for names in by_class]),
        shape,
    )


def _class_names(root: Path) -> tuple[str, ...]:
    folders = []
    for name, is_folder in _visible(root):
        if is_folder:
            folders.append(name)
        elif name.lower().endswith(EXTENSIONS):
            raise InputError("an image that lies in no class folder", str(root / name), _LAYOUT)
    if not folders:
        raise InputError("there are no class folders in it", str(root), _LAYOUT)
    if len(folders) == 1:
        raise InputError(
            f"one class folder only, {folders[0]}; it takes two or more", str(root), _LAYOUT
        )
    return tuple(folders)


def _file_names(folder: Path) -> list[str]:
    """The images of one class, sorted; what else lies there is refused by its name."""
    names = []
    for name, is_folder in _visible(folder):
        if is_folder:
            raise InputError(
                f"a folder inside a class folder; {_LAYOUT}",
                str(folder / name),
                f"if {folder.name} is no class, give the folder that holds the classes, such as"
                f" --data imagefolder:{folder}; else move {name} out",
            )
        if not name.lower().endswith(EXTENSIONS):
            raise InputError(
                f"not an image, by its name; images end in {' '.join(EXTENSIONS)}",
                str(folder / name),
                "move it out of the class folder, or hide it with a dot before its name",
            )
        names.append(name)
    if not names:
        raise InputError("no images in this class folder", str(folder), "fill it or remove it")
    return names


def _visible(folder: Path) -> list[tuple[str, bool]]:
    """What lies in ``folder`` and is not hidden, sorted: its name, and whether it is a folder."""
    try:
        with os.scandir(folder) as entries:
            return sorted((e.name, e.is_dir()) for e in entries if not e.name.startswith("."))
    except OSError as error:
        raise unreadable(str(folder), error) from error
