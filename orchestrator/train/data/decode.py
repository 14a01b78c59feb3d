"""From an image file to a normalised array, as nets trained on ImageNet are evaluated.

    file -> 8-bit RGB -> to 256/224 of the size, at the side that is shorter for it -> centre crop
         -> (x - mean) / std

The content tells a file's format, not its name: ImageNet itself holds a PNG and some CMYK files
named .JPEG. EXIF orientation is not applied, alpha is dropped and colour profiles are ignored, as
is practice in training on ImageNet (torchvision's ``ImageFolder`` does the same).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from orchestrator.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

# Of ImageNet's training pixels in [0, 1]; red, green, blue. The constants of torchvision's
# pretrained weights: https://docs.pytorch.org/vision/stable/models.html
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Weights of red, green and blue in gray: ITU-R BT.601-7, 2.5.1, as Pillow's conversion to L has it.
_LUMA = (0.299, 0.587, 0.114)

EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

_MAX_ASPECT = 100  # a thinner image would grow to hundreds of megabytes before its crop


def load_image(path: Path, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """The centre of the image in ``path``, normalised, of ``shape``.

    Args:
        path: the file.
        shape: (channels, height, width) to give, in pixels; 3 channels for RGB, 1 for gray.

    Raises:
        InputError: broken, cut short, not an image, or not to be read.
    """
    channels, height, width = shape
    image = _centre(_read(path, "RGB" if channels == 3 else "L"), height, width)
    pixels = np.asarray(image, dtype=np.float32).reshape(height, width, channels)
    mean, std = _statistics(channels)
    return ((pixels / np.float32(255) - mean) / std).transpose(2, 0, 1)


def unreadable(path: str, error: OSError) -> InputError:
    """What the system said about a file or folder, in the user's words."""
    reasons = {
        FileNotFoundError: ("does not exist", "check the path"),
        NotADirectoryError: ("is a file, not a folder", "give the folder that holds the classes"),
        PermissionError: ("cannot be read: permission denied", "allow it: chmod u+rX"),
    }
    reason, remedy = reasons.get(type(error), (f"cannot be read: {error.strerror or error}", ""))
    return InputError(reason, path, remedy)


def _read(path: Path, mode: str) -> Image:
    """The image (of an animation, the first) in ``mode``, RGB or L."""
    from PIL import Image as pillow

    try:
        with pillow.open(path, formats=_FORMATS) as image:
            _refuse_thin(image, path)
            image.load()
            return _eight_bit(image, path).convert(mode)
    except InputError:
        raise
    except (FileNotFoundError, PermissionError) as error:
        raise unreadable(str(path), error) from error
    except Exception as error:  # on broken files Pillow's decoders raise nearly anything
        raise InputError(
            f"cannot be decoded: {error or type(error).__name__}",
            str(path),
            "replace the file, or move it out of the class folder",
        ) from error


def _refuse_thin(image: Image, path: Path) -> None:
    if max(image.size) > _MAX_ASPECT * min(image.size):
        raise InputError(
            f"{image.width}x{image.height} pixels: one side is more than {_MAX_ASPECT} times the"
            " other",
            str(path),
            "crop the image, or move it out of the class folder",
        )


def _eight_bit(image: Image, path: Path) -> Image:
    """16-bit gray to its upper 8 bits, as Pillow itself does for 16-bit colour."""
    from PIL import Image as pillow

    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return pillow.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise InputError(
            "32-bit pixels, of which no value is known to be white",
            str(path),
            "store the image with 8 or 16 bits",
        )
    if "transparency" in image.info:
        return image.convert("RGBA")  # Pillow warns on the direct way
    return image


def _centre(image: Image, height: int, width: int) -> Image:
    """256/224 of the wanted size at one side and no less at the other, bilinear and antialiased,
    then the middle.

    The other side is cut to whole pixels, and the crop's corner rounded, as torchvision does.
    """
    from PIL.Image import Resampling

    short = [round(side * 256 / 224) for side in (width, height)]
    if short[0] * image.height >= short[1] * image.width:
        scaled = (short[0], int(short[0] * image.height / image.width))
    else:
        scaled = (int(short[1] * image.width / image.height), short[1])
    image = image.resize(scaled, Resampling.BILINEAR)
    left, top = round((scaled[0] - width) / 2), round((scaled[1] - height) / 2)
    return image.crop((left, top, left + width, top + height))


def _statistics(channels: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Mean and standard deviation, each of shape (channels,)."""
    mean, std = np.array(IMAGENET_MEAN), np.array(IMAGENET_STD)
    if channels == 1:
        # Gray's mean follows from the colours'; so does its deviation, if they move as one.
        mean, std = (np.array([values @ np.array(_LUMA)]) for values in (mean, std))
    return mean.astype(np.float32), std.astype(np.float32)
