"""Random and centre crops compared with torchvision's."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torchvision import transforms
from torchvision.transforms import v2

from mdistiller.data.crops import CROP_DRAWS, RATIO, SCALE, crop_box, middle_crop, random_resized_crop
from mdistiller.data.hashing import WEAK_VIEW, random_bits, uniform
from tests.data.support import write_image


def picture(tmp_path, height, width):
    return torch.from_numpy(write_image(tmp_path / "picture.png", height, width).copy()).permute(2, 0, 1)


@pytest.mark.parametrize("height, width", [(375, 500), (500, 333), (60, 600)])  # of the last, half are centre crops
def test_crop_boxes_have_the_distribution_of_torchvision_s(height, width):
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = np.array([transforms.RandomResizedCrop.get_params(image, SCALE, RATIO) for _ in range(1500)])
    draws = uniform(random_bits(0, WEAK_VIEW, 1, np.arange(1500), CROP_DRAWS))
    ours = np.array([crop_box(row, height, width) for row in draws])
    for column, name in enumerate(("top", "left", "height", "width")):
        assert stats.ks_2samp(theirs[:, column], ours[:, column]).pvalue > 1e-3, name
    top, left, h, w = ours.T
    assert (top >= 0).all() and (left >= 0).all() and (top + h <= height).all() and (left + w <= width).all()


def test_a_box_computed_by_hand():
    draws = np.full(CROP_DRAWS, 0.5)
    # area 0.54 * 100 * 200 = 10800, ratio 1: side 103.9, higher than the image. The second attempt: area 0.31 * 20000
    # = 6200, ratio 4/3: 90.9 wide, 68.2 high; of 33 places from the top the 16th, of 110 from the left the 55th
    draws[1], draws[11] = 0.25, 1.0
    assert crop_box(draws, 100, 200) == (16, 55, 68, 91)


@pytest.mark.parametrize(
    "height, width, expected", [(100, 1000, (0, 433, 100, 133)), (1000, 100, (433, 0, 133, 100)), (1, 1, (0, 0, 1, 1))]
)
def test_the_centre_is_cropped_if_no_attempt_fits(height, width, expected):
    assert crop_box(np.full(CROP_DRAWS, 1 - 2**-53), height, width) == expected


@pytest.mark.parametrize("last, flip, mirrored", [(0.4, True, True), (0.5, True, False), (0.4, False, False)])
def test_half_of_the_crops_are_mirrored_if_flips_are_on(tmp_path, last, flip, mirrored):
    image, draws = picture(tmp_path, 90, 70), np.full(CROP_DRAWS, 0.3)
    draws[-1] = last
    expected = v2.functional.resized_crop(image, *crop_box(draws, 90, 70), [48, 48], antialias=True)
    assert torch.equal(random_resized_crop(image, draws, 48, flip), expected.flip(2) if mirrored else expected)


@pytest.mark.parametrize("height, width", [(375, 500), (500, 333), (256, 256), (100, 90)])
def test_the_centre_crop_is_resize_256_and_center_crop_224(tmp_path, height, width):
    image = picture(tmp_path, height, width)
    chain = v2.Compose([v2.Resize(256, antialias=True), v2.CenterCrop(224)])
    assert torch.equal(middle_crop(image, 224), chain(image))
    with_pillow = chain(Image.open(tmp_path / "picture.png"))
    difference = middle_crop(image, 224).permute(1, 2, 0).int() - torch.from_numpy(np.array(with_pillow)).int()
    assert difference.abs().max() <= 1
