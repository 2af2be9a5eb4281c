"""The strong view against Pillow itself, pixel for pixel."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from scipy import stats

from mdistiller.data.strong import OPERATIONS, apply_operations, cutout, strong_augment, strong_draws

NAMES = [name for name, _, _ in OPERATIONS]
FACTOR, SHARE, UNUSED = (0.05, 0.95), (-0.3, 0.3), (0, 1)
RELEASED = {  # the ranges of the magnitudes in the published code of MLD
    "AutoContrast": UNUSED, "Brightness": FACTOR, "Color": FACTOR, "Contrast": FACTOR, "Equalize": UNUSED,
    "Identity": UNUSED, "Posterize": (4, 8), "Rotate": (-30, 30), "Sharpness": FACTOR, "ShearX": SHARE,
    "ShearY": SHARE, "Solarize": (0, 256), "TranslateX": SHARE, "TranslateY": SHARE,
}
PILLOW = {
    "AutoContrast": lambda image, v: ImageOps.autocontrast(image),
    "Brightness": lambda image, v: ImageEnhance.Brightness(image).enhance(v),
    "Color": lambda image, v: ImageEnhance.Color(image).enhance(v),
    "Contrast": lambda image, v: ImageEnhance.Contrast(image).enhance(v),
    "Equalize": lambda image, v: ImageOps.equalize(image),
    "Identity": lambda image, v: image,
    "Posterize": lambda image, v: ImageOps.posterize(image, int(v)),
    "Rotate": lambda image, v: image.rotate(v),
    "Sharpness": lambda image, v: ImageEnhance.Sharpness(image).enhance(v),
    "ShearX": lambda image, v: image.transform(image.size, Image.AFFINE, (1, v, 0, 0, 1, 0)),
    "ShearY": lambda image, v: image.transform(image.size, Image.AFFINE, (1, 0, 0, v, 1, 0)),
    "Solarize": lambda image, v: ImageOps.solarize(image, v),
    "TranslateX": lambda image, v: image.transform(image.size, Image.AFFINE, (1, 0, v * image.size[0], 0, 1, 0)),
    "TranslateY": lambda image, v: image.transform(image.size, Image.AFFINE, (1, 0, 0, 0, 1, v * image.size[1])),
}


def sample_images(number, height=32, width=32, seed=0):
    """Noise, smooth images with few or many levels, constant channels, and black borders as after crops."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (number, height, width, 3), dtype=np.uint8)
    ramp = np.linspace(0, 1, width)[None, :, None] * np.linspace(0, 1, height)[:, None, None]
    low, span = rng.uniform(0, 128, (2, number, 1, 1, 3))
    images[::3] = (low + span * ramp)[::3].astype(np.uint8)
    images[1::3] //= rng.integers(1, 64, (len(images[1::3]), 1, 1, 3), dtype=np.uint8)
    images[4::9] = rng.integers(0, 256, (len(images[4::9]), 1, 1, 3), dtype=np.uint8)
    images[::4, :3] = 0
    return images


def pillow(images, operations, magnitudes):
    """Each image through its operations, one at a time."""
    results = []
    for image, row, values in zip(images, operations, magnitudes, strict=True):
        result = Image.fromarray(image)
        for operation, value in zip(row, values, strict=True):
            result = PILLOW[NAMES[operation]](result, float(value))
        results.append(np.asarray(result))
    return np.stack(results)


def assert_equal_to_pillow(images, operations, magnitudes):
    result = apply_operations(torch.from_numpy(images), operations, magnitudes).numpy()
    expected = pillow(images, operations, magnitudes)
    wrong = (result != expected).any(axis=(1, 2, 3))
    assert not wrong.any(), (operations[wrong], magnitudes[wrong])


@pytest.mark.parametrize("height, width", [(32, 32), (64, 64), (33, 47)])
@pytest.mark.parametrize("name", NAMES)
def test_each_operation_equals_that_of_pillow_pixel_for_pixel(name, height, width):
    images = sample_images(200, height, width)
    _, low, high = OPERATIONS[NAMES.index(name)]
    magnitudes = np.random.default_rng(1).uniform(low, high, (200, 1))
    magnitudes[0] = low
    magnitudes[1::4] = np.round(magnitudes[1::4] * 64) / 64  # half pixels and whole levels, where rounding matters
    assert_equal_to_pillow(images, np.full((200, 1), NAMES.index(name)), magnitudes)


@pytest.mark.parametrize("batch", [1, 3, 500])
def test_a_mixed_batch_gives_each_image_its_own_operations_in_their_order(batch):
    operations, magnitudes, _ = strong_draws(4, 2, np.arange(batch))
    assert_equal_to_pillow(sample_images(batch), operations, magnitudes)


def test_cutout_equals_pillow_s_rectangle_with_both_corners_inside():
    images = sample_images(400)
    draws = np.random.default_rng(2).random((400, 3))
    draws[:8] = [(s, x, y) for s in (0.01, 1 - 2**-53) for x in (0, 1 - 2**-53) for y in (0, 1 - 2**-53)]
    for image, result, (side, x, y) in zip(images, cutout(torch.from_numpy(images), draws), draws, strict=True):
        side, expected = side * 0.5 * 32, Image.fromarray(image)
        left, top = int(max(0, 32 - 31 * x - side / 2)), int(max(0, 32 - 31 * y - side / 2))
        corner = min(32, left + side), min(32, top + side)
        ImageDraw.Draw(expected).rectangle((left, top, *corner), (125, 123, 114))
        assert (result.numpy() == np.asarray(expected)).all(), (side, x, y)


def test_a_box_computed_by_hand():
    image = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
    # side 0.5 * 8 * 0.625 = 2.5; centre 8 - 7 u = (1, 6): from (0, 4.75 -> 4) to (2.5 -> 2, 6.5 -> 6), inclusive
    (result,) = cutout(image, np.array([[0.625, 1, 2 / 7]]))
    expected = torch.zeros(8, 8, 3, dtype=torch.uint8)
    expected[4:7, 0:3] = torch.tensor([125, 123, 114], dtype=torch.uint8)
    assert torch.equal(result, expected)


def test_boxes_touch_the_left_edge_as_often_as_in_the_released_code():
    _, _, box = strong_draws(0, 1, np.arange(20_000))
    blank = torch.zeros(len(box), 32, 32, 3, dtype=torch.uint8)
    at_edge = (cutout(blank, box)[:, :, 0] != 0).flatten(1).any(1).double().mean()
    # the corner is floor(max(0, c - s / 2)) = 0 for c < 1 + s / 2, c in (1, 32], s in [0, 16): E[s / 2] / 31 = 4 / 31
    assert at_edge == pytest.approx(4 / 31, abs=0.01)


def test_the_fourteen_operations_are_equally_likely_and_drawn_independently():
    operations, magnitudes, box = strong_draws(0, 1, np.arange(50_000))
    pairs = np.bincount(operations[:, 0] * 14 + operations[:, 1], minlength=14 * 14)
    assert {name: (low, high) for name, low, high in OPERATIONS} == RELEASED and stats.chisquare(pairs).pvalue > 1e-3
    for number, (name, low, high) in enumerate(OPERATIONS):
        values = magnitudes[operations == number]
        assert stats.kstest(values, "uniform", (low, high - low)).pvalue > 1e-3, name
    assert all(stats.kstest(column, "uniform").pvalue > 1e-3 for column in box.T)


def test_a_sample_s_strong_view_does_not_depend_on_its_batch():
    images, index = torch.from_numpy(sample_images(40)), np.arange(100, 140)
    whole = strong_augment(images, 3, 5, index)
    assert torch.equal(strong_augment(images[7:8], 3, 5, index[7:8]), whole[7:8])
    reverse = torch.arange(39, -1, -1)
    assert torch.equal(strong_augment(images[reverse], 3, 5, index[::-1].copy()), whole[reverse])
    for other in ((4, 5), (3, 6)):
        assert (strong_augment(images, *other, index) != whole).flatten(1).any(1).float().mean() > 0.9


def test_the_input_is_not_changed():
    images = torch.from_numpy(sample_images(64))
    before = images.clone()
    strong_augment(images, 0, 1, np.arange(64))
    assert torch.equal(images, before)


def test_no_value_is_read_from_the_device():
    images = torch.empty(256, 32, 32, 3, dtype=torch.uint8, device="meta")  # reading a value raises
    assert strong_augment(images, 0, 1, np.arange(256)).shape == images.shape
