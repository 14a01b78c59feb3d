"""Image folders: what is read, what is refused, and pixels against an independent computation."""

from __future__ import annotations

import math
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from orchestrator.errors import InputError
from orchestrator.train.data import ImageFolder, Prefetcher, open_dataset

MEAN = np.array([0.485, 0.456, 0.406])
STD = np.array([0.229, 0.224, 0.225])
LEVEL = 1 / 255 / 0.224  # one step of an 8-bit pixel after normalising, in the narrowest channel

Pixels = npt.NDArray[np.uint8]


def opened(root: Path, image_size: int = 16, channels: int = 3, classes: int = 10) -> ImageFolder:
    data = open_dataset(
        f"imagefolder:{root}", shape=(channels, image_size, image_size), classes=classes, seed=0
    )
    assert isinstance(data, ImageFolder)
    return data


def noise(height: int, width: int, seed: int = 0) -> Pixels:
    shape = (height, width, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes, named so that the second in order is made first; three and two images."""
    for number, name in enumerate(
        ["dog/b.png", "dog/a.PNG", "cat/z.jpg", "cat/10.png", "cat/9.png"]
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(noise(20 + number, 31 - number, number)).save(tmp_path / name)
    return tmp_path


def beside(root: Path, image: Image.Image, name: str, **options: Any) -> torch.Tensor:
    """``image`` saved into class 'dog' as the last by name, and what comes back of it."""
    image.save(root / "dog" / f"zz{name}", **options)
    return opened(root).images([5])[0]


def triangle_resized(
    pixels: npt.NDArray[np.float64], out: int, axis: int
) -> npt.NDArray[np.float64]:
    """One axis by the definition: each output pixel a triangle's weighted mean over the input."""
    size = pixels.shape[axis]
    scale = size / out
    width = max(scale, 1.0)
    weights = np.zeros((out, size))
    for o in range(out):
        centre = (o + 0.5) * scale
        for i in range(size):
            weights[o, i] = max(0.0, 1 - abs(i + 0.5 - centre) / width)
        weights[o] /= weights[o].sum()
    return np.moveaxis(np.tensordot(weights, pixels, (1, axis)), 0, axis)


def expected(pixels: Pixels, side: int) -> npt.NDArray[np.float64]:
    """Resized, cropped and normalised in float64, shape (3, side, side)."""
    height, width = pixels.shape[:2]
    short = round(side * 256 / 224)
    new_height = short if height <= width else math.floor(short * height / width)
    new_width = short if width <= height else math.floor(short * width / height)
    resized = triangle_resized(pixels.astype(np.float64), new_width, 1)
    resized = triangle_resized(resized, new_height, 0)
    top, left = round((new_height - side) / 2), round((new_width - side) / 2)
    crop = resized[top : top + side, left : left + side]
    return np.asarray(((crop / 255 - MEAN) / STD).transpose(2, 0, 1))


# --- what is found


def test_classes_and_files_are_sorted_by_name(root: Path) -> None:
    data = opened(root)
    assert data.class_names == ("cat", "dog")
    assert [data.path(i).relative_to(root).as_posix() for i in range(data.size)] == [
        *("cat/10.png", "cat/9.png", "cat/z.jpg", "dog/a.PNG", "dog/b.png"),
    ]
    assert data.labels(range(5)).tolist() == [0, 0, 0, 1, 1]
    assert data.labels([4, 0]).dtype == torch.int64
    assert (data.name, data.size, data.classes) == ("imagefolder", 5, 2)
    assert "5 images in 2 classes" in data.description


def test_hidden_files_and_lists_beside_the_classes_are_skipped(root: Path) -> None:
    (root / ".cache").mkdir()
    (root / "cat" / ".DS_Store").write_bytes(b"x")
    (root / "LOC_synset_mapping.txt").write_text("cat a cat\n")
    assert opened(root).size == 5


def test_only_names_are_read_at_open(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("an image was opened")

    monkeypatch.setattr(Image, "open", refuse)
    assert opened(root).labels([4]).tolist() == [1]


def test_a_home_folder_is_expanded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell leaves the tilde of ``--data imagefolder:~/x`` as it is."""
    monkeypatch.setenv("HOME", str(root.parent))
    assert opened(Path("~") / root.name).size == 5


def test_it_travels_to_another_process(root: Path) -> None:
    data = opened(root)
    assert torch.equal(pickle.loads(pickle.dumps(data)).images([3]), data.images([3]))


# --- pixels


@pytest.mark.parametrize(
    ("height", "width", "side"),
    [(40, 60, 16), (60, 40, 16), (33, 33, 28), (9, 14, 16), (1, 5, 7), (301, 97, 64)],
)
def test_pixels_against_the_definition(root: Path, height: int, width: int, side: int) -> None:
    pixels = noise(height, width)
    Image.fromarray(pixels).save(root / "dog" / "zz.png")
    got = opened(root, image_size=side).images([5])[0]
    assert got.shape == (3, side, side)
    assert got.dtype == torch.float32
    # Pillow rounds to whole levels after each of its two passes.
    np.testing.assert_allclose(got.numpy(), expected(pixels, side), atol=1.05 * LEVEL)


@pytest.mark.parametrize(
    ("size", "wanted", "scaled"),
    [((40, 20), (24, 8), (27, 13)), ((20, 40), (24, 8), (27, 54)), ((20, 40), (8, 24), (13, 27))],
)
def test_of_sides_that_differ_neither_is_left_short(
    root: Path, size: tuple[int, int], wanted: tuple[int, int], scaled: tuple[int, int]
) -> None:
    """Width and height: 256/224 of one side, no less of the other, and the middle of that."""
    pixels = noise(size[1], size[0])
    image = Image.fromarray(pixels)
    image.save(root / "dog" / "zz.png")
    data = open_dataset(f"imagefolder:{root}", shape=(3, wanted[1], wanted[0]), classes=10, seed=0)
    left, top = ((a - b + 1) // 2 if (a - b) % 4 == 3 else (a - b) // 2
                 for a, b in zip(scaled, wanted, strict=True))  # fmt: skip
    crop = image.resize(scaled, Image.Resampling.BILINEAR).crop(
        (left, top, left + wanted[0], top + wanted[1])
    )
    want = ((np.asarray(crop) / 255 - MEAN) / STD).transpose(2, 0, 1)
    np.testing.assert_allclose(data.images([5])[0].numpy(), want, atol=1e-6)


@pytest.mark.parametrize("shape", [(12,), (3, 8), (2, 8, 8), (3, 2, 8, 8)])
def test_shapes_that_no_image_has_are_refused(root: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="the model reads") as caught:
        open_dataset(f"imagefolder:{root}", shape=shape, classes=10, seed=0)
    assert caught.value.location == f"--data imagefolder:{root}"


def test_nothing_is_resampled_where_the_shorter_side_fits(root: Path) -> None:
    pixels = noise(256, 300)
    Image.fromarray(pixels).save(root / "dog" / "zz.png")
    got = opened(root, image_size=224).images([5])[0].numpy()
    crop = pixels[16:240, 38:262]
    np.testing.assert_allclose(got, ((crop / 255 - MEAN) / STD).transpose(2, 0, 1), atol=1e-6)


def flat(value: tuple[int, ...] | int, mode: str) -> Image.Image:
    return Image.new(mode, (30, 24), value)


def palette() -> Image.Image:
    return flat((200, 100, 50), "RGB").quantize(4)


def palette_with_alpha() -> Image.Image:
    """Alpha for several colours, which Pillow warns of when it is converted straight to RGB."""
    image = flat(2, "P")
    image.putpalette([0, 0, 0, 9, 9, 9, 200, 100, 50, 7, 7, 7])
    image.info["transparency"] = bytes([0, 128, 60, 200])
    return image


def sixteen_bit() -> Image.Image:
    return Image.fromarray(np.full((24, 30), 0xC8FF, dtype=np.uint16))


def sixteen_bit_in_32() -> Image.Image:
    return Image.fromarray(np.full((24, 30), 0xC8FF, dtype=np.int32))  # mode I


def cmyk() -> Image.Image:
    return flat((55, 155, 205, 0), "CMYK")


@pytest.mark.parametrize(
    ("make", "name", "colour", "levels"),
    [
        (lambda: flat((200, 100, 50), "RGB"), "rgb.png", (200, 100, 50), 0),
        (lambda: flat((200, 100, 50), "RGB"), "rgb.jpg", (200, 100, 50), 2),
        (lambda: flat((200, 100, 50), "RGB"), "rgb.bmp", (200, 100, 50), 0),
        (lambda: flat((200, 100, 50), "RGB"), "rgb.ppm", (200, 100, 50), 0),
        (lambda: flat((200, 100, 50), "RGB"), "rgb.tiff", (200, 100, 50), 0),
        (lambda: flat((200, 100, 50), "RGB"), "rgb.webp", (200, 100, 50), 4),
        (lambda: flat((200, 100, 50, 7), "RGBA"), "rgba.png", (200, 100, 50), 0),
        (lambda: flat(90, "L"), "gray.jpeg", (90, 90, 90), 1),
        (lambda: flat((90, 7), "LA"), "gray_alpha.png", (90, 90, 90), 0),
        (lambda: flat(1, "1"), "bit.png", (255, 255, 255), 0),
        (cmyk, "cmyk.jpg", (200, 100, 50), 3),
        (palette, "palette.png", (200, 100, 50), 0),
        (palette, "palette.gif", (200, 100, 50), 0),
        (palette_with_alpha, "palette_alpha.png", (200, 100, 50), 0),
        (sixteen_bit, "sixteen.png", (0xC8, 0xC8, 0xC8), 0),
        (sixteen_bit, "sixteen.tif", (0xC8, 0xC8, 0xC8), 0),
        (sixteen_bit_in_32, "sixteen.pgm", (0xC8, 0xC8, 0xC8), 0),
    ],
)
def test_every_format_and_mode_becomes_rgb(
    root: Path,
    make: Callable[[], Image.Image],
    name: str,
    colour: tuple[int, int, int],
    levels: int,
) -> None:
    got = beside(root, make(), name).numpy()
    wanted = ((np.array(colour) / 255 - MEAN) / STD)[:, None, None]
    assert np.abs(got - wanted).max() <= levels * LEVEL + 1e-5


def test_an_animation_gives_its_first_image(root: Path) -> None:
    frames = [flat((255, 0, 0), "RGB"), flat((0, 0, 255), "RGB")]
    got = beside(root, frames[0], "moves.gif", save_all=True, append_images=frames[1:])
    assert got[0].mean() > got[2].mean()


def test_the_content_tells_the_format(root: Path) -> None:
    """ImageNet's n02105855_2933.JPEG is a PNG."""
    got = beside(root, flat((200, 100, 50), "RGB"), "is_png.JPEG", format="PNG")
    assert got[0, 0, 0].item() == pytest.approx((200 / 255 - MEAN[0]) / STD[0], abs=1e-5)


def test_exif_orientation_is_not_applied(root: Path) -> None:
    pixels = np.zeros((32, 32, 3), dtype=np.uint8)
    pixels[:16] = 255
    turned = Image.Exif()
    turned[0x0112] = 3  # upside down
    got = beside(root, Image.fromarray(pixels), "turned.png", exif=turned)
    assert got[:, :4].mean() > got[:, -4:].mean()


def test_gray_for_a_model_of_one_channel(root: Path) -> None:
    flat((200, 100, 50), "RGB").save(root / "dog" / "zz.png")
    got = opened(root, channels=1).images([5])
    assert got.shape == (1, 1, 16, 16)
    luma = np.array([0.299, 0.587, 0.114])
    wanted = (luma @ [200, 100, 50] / 255 - luma @ MEAN) / (luma @ STD)
    assert got.mean().item() == pytest.approx(wanted, abs=LEVEL)


def test_an_image_does_not_depend_on_its_batch(root: Path) -> None:
    data = opened(root)
    order = [4, 0, 4, 2, 1, 3]
    together = data.images(order)
    assert torch.equal(together, torch.cat([data.images([i]) for i in order]))
    assert torch.equal(together, opened(root).images(order))
    assert not torch.equal(together[0], together[1])
    assert data.images([]).shape == (0, 3, 16, 16)


# --- what is refused


def refused(root: Path | str, **options: int) -> InputError:
    with pytest.raises(InputError) as told:
        opened(Path(root), **options)
    return told.value


def test_a_path_that_does_not_exist(root: Path) -> None:
    error = refused(root / "nowhere")
    assert "does not exist" in error.message
    assert error.location == str(root / "nowhere")


def test_a_path_that_is_a_file(root: Path) -> None:
    assert "is a file" in refused(root / "cat" / "9.png").message


def test_an_empty_folder(tmp_path: Path) -> None:
    assert "no class folders" in refused(tmp_path).message


def test_images_without_class_folders(root: Path) -> None:
    error = refused(root / "cat")
    assert "no class folder" in error.message
    assert error.location.endswith("10.png")
    assert "PATH/class/image.jpg" in error.remedy


def test_one_class_only(root: Path) -> None:
    (root / "dog").rename(root / ".dog")
    assert "one class folder only, cat" in refused(root).message


def test_a_class_without_images(root: Path) -> None:
    (root / "emu").mkdir()
    error = refused(root)
    assert "no images" in error.message
    assert error.location == str(root / "emu")


def test_a_file_that_is_no_image_by_its_name(root: Path) -> None:
    (root / "cat" / "notes.txt").write_text("x")
    error = refused(root)
    assert error.location == str(root / "cat" / "notes.txt")
    assert "move it out" in error.remedy


def test_the_folder_above_the_classes(root: Path) -> None:
    """A user gives ImageNet's own folder, which holds train/ and val/."""
    for part, class_name in (("train", "dog"), ("val", "cat")):
        (root / "above" / part).mkdir(parents=True)
        (root / class_name).rename(root / "above" / part / class_name)
    error = refused(root / "above")
    assert f"--data imagefolder:{root / 'above' / 'train'}" in error.remedy


def test_more_classes_than_the_model_has(root: Path) -> None:
    error = refused(root, classes=1)
    assert "2 classes" in error.message
    assert "--set model.classes=2" in error.remedy


def test_a_model_of_four_channels(root: Path) -> None:
    assert "the model reads 4" in refused(root, channels=4).message


def test_a_folder_that_may_not_be_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def guarded(path: Path) -> object:
        if path == root / "dog":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)  # root may read anything, so chmod proves little
    error = refused(root)
    assert "permission denied" in error.message
    assert error.location == str(root / "dog")


def broken(root: Path, name: str) -> InputError:
    """The error that decoding class dog's last file gives, in a batch with sound ones."""
    data = opened(root)
    index = next(i for i in range(data.size) if data.path(i).name == name)
    data.images([i for i in range(data.size) if i != index])
    with pytest.raises(InputError) as told:
        data.images([0, index, 1])
    assert told.value.location == str(root / "dog" / name)
    return told.value


@pytest.mark.parametrize("name", ["zz.jpg", "zz.png", "zz.gif", "zz.tif", "zz.webp", "zz.bmp"])
@pytest.mark.parametrize("keep", [0.0, 0.1, 0.6])
def test_a_file_cut_short(root: Path, name: str, keep: float) -> None:
    path = root / "dog" / name
    Image.fromarray(noise(64, 64)).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    error = broken(root, name)
    assert "cannot be decoded" in error.message
    assert error.remedy


def test_text_named_as_an_image(root: Path) -> None:
    (root / "dog" / "zz.png").write_text("<html>404</html>")
    assert "cannot be decoded" in broken(root, "zz.png").message


def test_a_damaged_png(root: Path) -> None:
    path = root / "dog" / "zz.png"
    Image.fromarray(noise(64, 64)).save(path)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    path.write_bytes(damaged)
    assert "cannot be decoded" in broken(root, "zz.png").message


def test_a_file_gone_since_the_names_were_read(root: Path) -> None:
    (root / "dog" / "zz.png").symlink_to(root / "nowhere.png")
    assert "does not exist" in broken(root, "zz.png").message


def test_a_file_that_may_not_be_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flat(0, "L").save(root / "dog" / "zz.png")
    opening = Image.open

    def guarded(path: Path, **options: object) -> object:
        if path.name == "zz.png":
            raise PermissionError(13, "Permission denied", str(path))
        return opening(path, **options)  # type: ignore[arg-type]  # passed on as they came

    monkeypatch.setattr(Image, "open", guarded)
    assert "permission denied" in broken(root, "zz.png").message


def test_pixels_of_32_bits(root: Path) -> None:
    Image.fromarray(np.ones((20, 20), dtype=np.float32)).save(root / "dog" / "zz.tif")
    assert "32-bit" in broken(root, "zz.tif").message


def test_a_thread_of_an_image(root: Path) -> None:
    """1 x 20,000 pixels would be 256 x 5,120,000 before its crop: 4 GB."""
    Image.new("L", (20_000, 1)).save(root / "dog" / "zz.png")
    assert "20000x1" in broken(root, "zz.png").message


def test_a_decompression_bomb(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flat(0, "L").save(root / "dog" / "zz.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 350)  # Pillow refuses twice as many
    data = opened(root)
    with pytest.raises(InputError, match="bomb"):
        data.images([5])


def test_of_two_broken_files_the_first_is_told(root: Path) -> None:
    for name in ("zy.png", "zz.png"):
        (root / "dog" / name).write_bytes(b"")
    data = opened(root)
    for _ in range(5):
        with pytest.raises(InputError) as told:
            data.images([0, 6, 5])
        assert told.value.location.endswith("zz.png")


def test_a_broken_file_is_told_through_a_prefetcher(root: Path) -> None:
    (root / "dog" / "zz.png").write_bytes(b"")
    data = opened(root)
    with Prefetcher(lambda step: data.images([step]), start=4) as batches:
        batches.next()
        with pytest.raises(InputError, match=r"zz\.png"):
            batches.next()
