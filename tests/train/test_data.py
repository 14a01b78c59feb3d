"""open_dataset, the digits and the made-up images: values, determinism, and every bad spec."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from orchestrator.errors import InputError
from orchestrator.train.data import Dataset, open_dataset


def opened(
    spec: str, image_size: int = 16, channels: int = 3, classes: int = 10, seed: int = 0
) -> Dataset:
    return open_dataset(spec, shape=(channels, image_size, image_size), classes=classes, seed=seed)


@pytest.mark.parametrize("spec", ["digits", "synthetic:1000"])
def test_shapes_and_types(spec: str) -> None:
    data = opened(spec, image_size=20, channels=2)
    images, labels = data.images([5, 0, 999]), data.labels([5, 0, 999])
    assert images.shape == (3, 2, 20, 20)
    assert images.dtype == torch.float32
    assert labels.shape == (3,)
    assert labels.dtype == torch.int64
    assert data.images([]).shape == (0, 2, 20, 20)
    assert data.name == spec.partition(":")[0]
    assert f"{data.size:,}" in data.description
    assert "\n" not in data.description


@pytest.mark.parametrize("shape", [(12,), (4, 6), (3, 5, 7), (1, 40, 8), (2, 3, 4, 5), (1,)])
def test_synthetic_of_any_shape(shape: tuple[int, ...]) -> None:
    data = open_dataset("synthetic:400", shape=shape, classes=2, seed=0)
    images = data.images(range(400))
    assert images.shape == (400, *shape)
    assert torch.isfinite(images).all()
    assert images.flatten(1)[::2].mean(0).sub(images.flatten(1)[1::2].mean(0)).norm() > 0.2
    assert f"{'x'.join(map(str, shape))}, seed" in data.description
    assert torch.equal(images[7:8], data.images([7]))


def test_digits_of_any_sides_or_as_pixels() -> None:
    wide = open_dataset("digits", shape=(2, 8, 24), classes=10, seed=0).images([3, 4])
    assert wide.shape == (2, 2, 8, 24)
    plain = opened("digits", image_size=8, channels=1).images([3, 4])
    assert torch.equal(wide[:, 0, :, 1::3], wide[:, 1, :, 1::3])
    assert torch.allclose(wide[:, :1, :, 1::3], plain)  # the middle of each pixel's three
    pixels = open_dataset("digits", shape=(64,), classes=10, seed=0)
    assert torch.equal(pixels.images([3, 4]), plain.flatten(1))
    assert "as 64 pixels" in pixels.description


@pytest.mark.parametrize("shape", [(12,), (8, 8), (1, 2, 8, 8)])
def test_digits_of_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="the model reads") as caught:
        open_dataset("digits", shape=shape, classes=10, seed=0)
    assert caught.value.location == "--data digits"
    assert "--data synthetic" in caught.value.remedy


@pytest.mark.parametrize("spec", ["digits", "synthetic:1000"])
def test_a_sample_does_not_depend_on_its_batch(spec: str) -> None:
    data = opened(spec, image_size=37)
    many = [3, 999, 3, 41, 0, 500, 7]
    together = data.images(many)
    alone = torch.cat([data.images([index]) for index in many])
    assert torch.equal(together, alone)
    assert torch.equal(data.images(np.array(many)), together)
    assert torch.equal(data.labels(many), torch.cat([data.labels([i]) for i in many]))


@pytest.mark.parametrize("spec", ["digits", "synthetic:1000"])
def test_two_processes_would_see_the_same(spec: str) -> None:
    one, other = opened(spec, seed=3), opened(spec, seed=3)
    assert torch.equal(one.images(range(50)), other.images(range(50)))
    assert torch.equal(one.labels(range(50)), other.labels(range(50)))


@pytest.mark.parametrize("spec", ["digits", "synthetic:1797"])
@pytest.mark.parametrize("index", [-1, 1797])
def test_an_index_outside_is_not_wrapped_around(spec: str, index: int) -> None:
    data = opened(spec)
    with pytest.raises(IndexError, match="1797"):
        data.images([0, index])
    with pytest.raises(IndexError, match="1797"):
        data.labels([0, index])


def test_digits_are_the_real_ones_in_order() -> None:
    data = opened("digits", image_size=8, channels=1)
    bunch = load_digits()
    everything = range(data.size)
    images = data.images(everything)
    assert images.mean().item() == pytest.approx(0, abs=1e-5)
    assert images.std().item() == pytest.approx(1, abs=1e-4)
    # At their own size nothing is resampled, so the pixels are known up to one line y = a x + b.
    pixels = torch.tensor(bunch.images, dtype=torch.float32)
    scaled = (images[:, 0] - images.min()) / (images.max() - images.min()) * 16
    torch.testing.assert_close(scaled, pixels, atol=1e-4, rtol=0)
    assert data.labels(everything).tolist() == bunch.target.tolist()
    assert (data.size, data.classes) == (1797, 10)


def test_enlarged_digits_are_bilinear_and_the_same_in_each_channel() -> None:
    small = opened("digits", image_size=8, channels=1).images([17])[0, 0]
    large = opened("digits", image_size=16, channels=3).images([17])[0]
    # Twice the size: pixel centres lie a quarter off, so weights are 3/4 and 1/4, edges clamped.
    weights = torch.zeros(16, 8)
    for out in range(16):
        near, far = out // 2, out // 2 + (1 if out % 2 else -1)
        weights[out, near] += 0.75
        weights[out, min(max(far, 0), 7)] += 0.25
    expected = weights @ small @ weights.T
    for channel in large:
        torch.testing.assert_close(channel, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("image_size", [9, 28, 64])
def test_enlarged_digits_stay_centred(image_size: int) -> None:
    images = opened("digits", image_size=image_size, channels=1).images(range(1797))
    assert images.mean().item() == pytest.approx(0, abs=0.02)
    assert 0.7 < images.var().item() < 1.0


def test_synthetic_has_imagenets_size_unless_said_otherwise() -> None:
    assert opened("synthetic").size == 1_281_167
    assert opened("synthetic:12").size == 12
    assert opened("synthetic").classes == 10
    opened("synthetic").images([1_281_166])


def test_synthetic_depends_on_seed_and_sample() -> None:
    first = opened("synthetic", seed=0).images([0, 10])
    assert not torch.allclose(first, opened("synthetic", seed=1).images([0, 10]))
    assert not torch.allclose(first[0], first[1])  # one class, two samples


def test_synthetic_is_normalised_and_balanced() -> None:
    data = opened("synthetic", image_size=32)
    images = data.images(range(500))
    assert images.mean().item() == pytest.approx(0, abs=0.01)
    assert images.var().item() == pytest.approx(1, abs=0.02)
    assert torch.bincount(data.labels(range(500))).tolist() == [50] * 10


def test_a_synthetic_class_can_be_learnt() -> None:
    """The nearest class mean of 200 samples tells 100 unseen ones apart; by chance it is 10 %."""
    data = opened("synthetic")
    images, labels = data.images(range(200)).flatten(1), data.labels(range(200))
    means = torch.stack([images[labels == c].mean(0) for c in range(10)])
    unseen = range(1000, 1100)
    guesses = torch.cdist(data.images(unseen).flatten(1), means).argmin(1)
    assert (guesses == data.labels(unseen)).float().mean() > 0.95


@pytest.mark.parametrize("image_size", [1, 3, 4, 5, 227])
def test_synthetic_at_any_size(image_size: int) -> None:
    images = opened("synthetic", image_size=image_size).images([1])
    assert images.shape == (1, 3, image_size, image_size)
    assert images.isfinite().all()


def test_more_classes_than_the_model_has() -> None:
    with pytest.raises(InputError) as refused:
        opened("digits", classes=7)
    assert "10 classes" in str(refused.value)
    assert "7" in refused.value.message
    assert "--set model.classes=10" in refused.value.remedy


def test_fewer_classes_than_the_model_has() -> None:
    assert opened("digits", classes=1000).classes == 10


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("", "digits, synthetic, synthetic:N or imagefolder:PATH"),
        ("digit", "digits, synthetic, synthetic:N or imagefolder:PATH"),
        ("digits:8", "digits, synthetic, synthetic:N or imagefolder:PATH"),
        ("synthetic:", "whole number above 0, not ''"),
        ("synthetic:0", "whole number above 0, not '0'"),
        ("synthetic:-5", "whole number above 0, not '-5'"),
        ("synthetic:1e6", "whole number above 0, not '1e6'"),
        ("imagefolder", "a folder must follow"),
        ("imagefolder:", "a folder must follow"),
        ("hf:mnist", "not built in yet"),
        ("hf:", "not built in yet"),
    ],
)
def test_a_bad_spec(spec: str, told: str) -> None:
    with pytest.raises(InputError) as refused:
        opened(spec)
    assert told in str(refused.value)
    assert refused.value.location.startswith(f"--data {spec}")
    assert refused.value.remedy
