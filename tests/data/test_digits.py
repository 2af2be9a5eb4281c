"""The embedded data set."""

import numpy as np
from sklearn.datasets import load_digits

from mdistiller.data import build_data
from mdistiller.data.digits import read_digits
from tests.data.support import config, num_eval


def test_digits_have_thirty_training_images_per_class_and_the_rest_are_test_images():
    source = read_digits()
    assert np.bincount(source.train_labels).tolist() == [30] * 10
    assert len(source.train_images) + len(source.test_images) == 1797
    assert np.bincount(source.test_labels).min() == 144  # 174 scans of an 8


def test_no_scan_is_both_trained_and_tested_on():
    source = read_digits()
    train = {image.tobytes() for image in source.train_images}
    assert len(train) == 300
    assert not any(image.tobytes() in train for image in source.test_images)


def test_a_scan_keeps_its_corners_and_its_levels():
    scans = load_digits()
    source = read_digits()
    images = np.concatenate([source.train_images, source.test_images])
    corners = {tuple(image[[0, 0, -1, -1], [0, -1, 0, -1], 0]) for image in images}
    levels = np.rint(scans.images[:, [0, 0, -1, -1], [0, -1, 0, -1]] * 255 / 16).astype(np.uint8)
    assert corners == {tuple(row) for row in levels}
    assert images.dtype == np.uint8 and (images == images[..., :1]).all() and images.max() == 255


def test_mean_and_deviation_are_those_of_the_training_images():
    source = read_digits()
    pixels = source.train_images / 255
    np.testing.assert_allclose([pixels.mean(), pixels.std()], [source.mean[0], source.std[0]], atol=5e-5)


def test_digits_are_cropped_and_never_mirrored():
    data = build_data(config("DATASET.TYPE", "digits"), "cpu")
    views = np.concatenate([views for epoch in range(5) for _, views in data.train_views(epoch)])
    assert not (views % 2).any() and len(np.unique(views)) == 81
    info = data.info
    assert (info.name, info.family, info.num_classes, info.image_size) == ("digits", "cifar", 10, 32)
    assert (info.num_train, data.num_batches, num_eval(data)) == (300, 5, 1497)
