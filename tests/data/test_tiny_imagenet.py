"""Tiny-ImageNet from its official layout."""

import numpy as np
import pytest
import torch
from PIL import Image

from mdistiller.data import build_data
from mdistiller.data.images import CENTRE
from mdistiller.errors import UserError
from tests.data.support import REAL, config, needs, write_image

WNIDS = ("n02", "n01", "n10")


@pytest.fixture
def root(tmp_path):
    """Three classes of four training images, and five validation images in another order."""
    folder = tmp_path / "tiny-imagenet-200"
    for label, wnid in enumerate(WNIDS):
        for place in range(4):
            write_image(folder / "train" / wnid / "images" / f"{wnid}_{place}.JPEG", 64, 64, 10 * label + place)
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text("n02_0.JPEG\t0\t0\t62\t62\n")
    lines = []
    for place, wnid in enumerate(("n10", "n01", "n02", "n02", "n01")):
        write_image(folder / "val" / "images" / f"val_{place}.JPEG", 64, 64, 100 + place)
        lines.append(f"val_{place}.JPEG\t{wnid}\t0\t32\t44\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    return tmp_path


def build(root, *opts):
    return build_data(config("DATASET.TYPE", "tiny_imagenet", "DATASET.ROOT", str(root), *opts), "cpu")


def test_classes_are_the_sorted_ids_and_images_are_those_of_the_files(root):
    data = build(root, "SOLVER.BATCH_SIZE", 5)
    assert (data.info.name, data.info.family, data.info.image_size) == ("tiny_imagenet", "tiny_imagenet", 64)
    assert data.info.classes == ("n01", "n02", "n10") and data.info.targets.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    (batch,) = data.eval_batches("test")
    assert batch["target"].tolist() == [2, 0, 1, 1, 0]
    folder = root / "tiny-imagenet-200"
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (data.info.mean, data.info.std))
    for image, path in ((batch["image"][3], "val/images/val_3.JPEG"), (data.image_at(*torch.tensor([[6], [CENTRE]]))[0],
                                                                      "train/n02/images/n02_2.JPEG")):
        pixels = torch.from_numpy(np.array(Image.open(folder / path))).permute(2, 0, 1)
        torch.testing.assert_close(image, (pixels / 255 - mean) / std)
    assert data.views_are_finite and [len(batch["index"]) for batch in data.train_batches(1)] == [5, 5, 2]


def test_the_root_may_be_the_data_set_itself(root):
    assert build(root / "tiny-imagenet-200").info.fingerprint == build(root).info.fingerprint


def test_a_validation_set_sorted_into_folders_of_classes_is_read_too(root):
    val = root / "tiny-imagenet-200" / "val"
    expected = {tuple(row) for row in build(root).held_out["test"].flatten(1)[:, :40].tolist()}
    for line in (val / "val_annotations.txt").read_text().splitlines():
        name, wnid, *_ = line.split("\t")
        (val / wnid / "images").mkdir(parents=True, exist_ok=True)
        (val / "images" / name).rename(val / wnid / "images" / name)
    (val / "images").rmdir()
    (val / "val_annotations.txt").unlink()
    data = build(root)
    (batch,) = data.eval_batches()
    assert batch["target"].tolist() == [0, 0, 1, 1, 2]
    assert {tuple(row) for row in data.held_out["test"].flatten(1)[:, :40].tolist()} == expected


def damage_annotations(root, text):
    (root / "tiny-imagenet-200" / "val" / "val_annotations.txt").write_text(text)


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda root: (root / "tiny-imagenet-200").rename(root / "x"), "tiny_imagenet is missing.*tiny-imagenet-200"),
        (lambda root: (root / "tiny-imagenet-200/val/val_annotations.txt").unlink(), "val_annotations.txt is missing"),
        (lambda root: damage_annotations(root, "val_0.JPEG\tn10\nval_1.JPEG\n"), "line 2: class ''"),
        (lambda root: damage_annotations(root, "val_0.JPEG\tn77\n"), "line 1: class 'n77'"),
        (lambda root: damage_annotations(root, "val_0.JPEG\tn10\n"), "no images of 2 classes of train/, such as n01"),
        (lambda root: (root / "tiny-imagenet-200/val/images/val_2.JPEG").unlink(), "val_2.JPEG .No such file"),
        (lambda root: write_image(root / "tiny-imagenet-200/val/images/val_1.JPEG", 32, 64), "64x32 pixels, expected"),
        (lambda root: (root / "tiny-imagenet-200/train/n10/images/n10_1.JPEG").write_text(""), "n10_1.JPEG .not an im"),
    ],
)
def test_missing_and_damaged_files_are_user_errors(root, damage, message):
    damage(root)
    with pytest.raises(UserError, match=message):
        build(root)


def test_a_broken_image_is_left_out_when_asked(root):
    (root / "tiny-imagenet-200/train/n10/images/n10_1.JPEG").write_text("")
    data = build(root, "DATASET.SKIP_BROKEN", True)
    assert data.info.targets.tolist() == [0] * 4 + [1] * 4 + [2] * 3


@needs("tiny-imagenet-200")
def test_the_real_images_have_the_statistics_they_are_normalised_with():
    data = build(REAL, "SOLVER.BATCH_SIZE", 512)
    assert data.info.num_classes == 200 and data.info.num_train % 200 == 0
    pixels = data.images.interior.flatten(1, 2) / 255
    # those in use are of all 100,000 images; the deviation is that within an image, not that of all pixels
    torch.testing.assert_close(pixels.mean((0, 1)), torch.tensor(data.info.mean), rtol=0, atol=0.01)
    torch.testing.assert_close(pixels.std(1).mean(0), torch.tensor(data.info.std), rtol=0, atol=0.01)
