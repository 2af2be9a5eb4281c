"""Crops, flips and normalisation of whole batches, against torchvision's own."""

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision import transforms
from torchvision.transforms.v2 import functional as tv

from mdistiller.data.hashing import WEAK_VIEW
from mdistiller.data.images import CENTRE, NUM_VIEWS, Normalise, PaddedImages, random_rotations, random_views

CPU = torch.device("cpu")
MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


def noise(number, height=32, width=32):
    return np.random.default_rng(0).integers(0, 256, (number, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("height, width", [(32, 32), (64, 64), (8, 12)])
def test_every_view_is_torchvision_s_padded_crop_and_flip_pixel_for_pixel(height, width):
    images = noise(3, height, width)
    padded = PaddedImages(images, np.arange(3), CPU)
    view = torch.arange(NUM_VIEWS)
    for index, image in enumerate(images):
        cut = padded.cut(padded.start(torch.full_like(view, index), view), view % 2)
        large = tv.pad(torch.from_numpy(image).permute(2, 0, 1), [4, 4, 4, 4])
        for number in range(NUM_VIEWS):
            top, left, flip = number // 18, number // 2 % 9, number % 2
            expected = tv.crop(large, top, left, height, width)
            expected = tv.horizontal_flip(expected) if flip else expected
            assert torch.equal(cut[number].permute(2, 0, 1), expected), (index, number)


def test_only_the_chosen_images_are_kept_in_their_order():
    images = noise(6)
    padded = PaddedImages(images, np.array([5, 2]), CPU)
    middle = torch.full((2,), 4 * 18 + 4 * 2)  # neither moved nor flipped
    cut = padded.cut(padded.start(torch.arange(2), middle), torch.zeros(2, dtype=torch.int64))
    assert torch.equal(cut, torch.from_numpy(images[[5, 2]]))
    assert torch.equal(padded.interior, cut)


def test_all_views_are_equally_frequent():
    views = random_views(0, WEAK_VIEW, 1, np.arange(50_000), flip=True)
    assert stats.chisquare(np.bincount(views, minlength=NUM_VIEWS)).pvalue > 1e-3


def test_without_flip_the_81_crops_are_equally_frequent_and_none_is_mirrored():
    views = random_views(0, WEAK_VIEW, 1, np.arange(50_000), flip=False)
    assert not (views % 2).any()
    assert stats.chisquare(np.bincount(views // 2, minlength=NUM_VIEWS // 2)).pvalue > 1e-3


@pytest.mark.parametrize("flip", [True, False])
def test_rotations_are_uniform_within_20_degrees_of_the_image_or_its_mirror_image(flip):
    view, degrees = random_rotations(0, WEAK_VIEW, 1, np.arange(20_000), flip)
    assert stats.kstest(degrees, "uniform", (-20, 40)).pvalue > 1e-3
    mirrored = (view == CENTRE + 1).sum()
    assert ((view == CENTRE) | (view == CENTRE + 1)).all()
    assert stats.binomtest(mirrored, 20_000).pvalue > 1e-3 if flip else mirrored == 0


def test_the_central_view_is_the_image_itself():
    images = noise(2)
    padded, view = PaddedImages(images, np.arange(2), CPU), torch.full((2,), CENTRE)
    assert torch.equal(padded.cut(padded.start(torch.arange(2), view), view % 2), torch.from_numpy(images))


def test_normalisation_is_torchvision_s_to_the_last_bit_for_every_value():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    chain = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    result = Normalise(MEAN, STD, 16, CPU)(torch.from_numpy(levels))
    assert torch.equal(result[0], chain(levels[0]))
    assert result.is_contiguous(memory_format=torch.channels_last)


def test_cropping_and_normalising_read_no_value_from_the_device():
    meta = torch.device("meta")  # has no values: reading one raises
    padded = PaddedImages(noise(3), np.arange(3), meta)
    flip = torch.zeros(2, dtype=torch.int64, device=meta)
    assert Normalise(MEAN, STD, 32, meta)(padded.cut(flip, flip)).shape == (2, 3, 32, 32)
