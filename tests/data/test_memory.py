"""Batches: their content, which depends only on seed, epoch and sample."""

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision import transforms

from mdistiller.data import build_data, memory
from mdistiller.data.hashing import STRONG_VIEW, WEAK_VIEW
from mdistiller.data.images import random_rotations, random_views
from mdistiller.data.memory import InMemoryData
from mdistiller.data.strong import strong_augment
from mdistiller.errors import UserError
from tests.data.support import BOTH, by_index, config, noise_data, noise_source, num_eval


def epoch_of(data, epoch=1, **kwargs):
    return list(data.train_batches(epoch, **kwargs))


def same(one, two):
    assert one.keys() == two.keys()
    for key in one:
        assert torch.equal(one[key], two[key]) if isinstance(one[key], torch.Tensor) else one[key] == two[key], key


def test_an_epoch_holds_every_image_once_with_its_label_and_keeps_the_last_partial_batch():
    data = noise_data()
    batches = epoch_of(data)
    assert [len(batch["target"]) for batch in batches] == [16, 16, 16, 2] and data.num_batches == 4
    assert torch.equal(by_index(batches, "index"), torch.arange(50))
    assert torch.equal(by_index(batches, "target"), data.info.targets)
    for batch in batches:
        assert batch.keys() == {"image", "target", "index"}
        assert batch["image"].dtype == torch.float32 and batch["image"].shape[1:] == (3, 32, 32)
        assert batch["image"].is_contiguous(memory_format=torch.channels_last)


def test_images_are_torchvision_s_views_normalised_as_torchvision_does():
    data, source = noise_data(), noise_source()
    chain = transforms.Compose([transforms.ToTensor(), transforms.Normalize(source.mean, source.std)])
    batch = next(data.train_batches(3))
    for image, index, view in zip(batch["image"], *next(data.train_views(3)), strict=True):
        padded = np.pad(source.train_images[index], ((4, 4), (4, 4), (0, 0)))
        crop = padded[view // 18 :][:32, view // 2 % 9 :][:, :32]
        assert torch.equal(image, chain(crop[:, ::-1].copy() if view % 2 else crop))


def test_image_at_gives_the_image_of_a_batch_from_its_index_and_view():
    data = noise_data()
    for batch, (_, views) in zip(data.train_batches(2), data.train_views(2), strict=True):
        assert torch.equal(data.image_at(batch["index"], torch.from_numpy(views)), batch["image"])


def test_resuming_in_the_middle_of_an_epoch_continues_it_exactly():
    whole, rest = epoch_of(noise_data(), views=BOTH), epoch_of(noise_data(), views=BOTH, start=2)
    assert len(rest) == 2
    for one, two in zip(whole[2:], rest, strict=True):
        same(one, two)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_neither_view_of_a_sample_depends_on_the_batch_size(batch_size):
    one, two = epoch_of(noise_data(), views=BOTH), epoch_of(noise_data(batch_size=batch_size), views=BOTH)
    for key in BOTH:
        assert torch.equal(by_index(one, key), by_index(two, key))


def test_epochs_and_seeds_change_order_and_views():
    first, second = epoch_of(noise_data(), views=BOTH), epoch_of(noise_data(), epoch=2, views=BOTH)
    other = epoch_of(noise_data("EXPERIMENT.SEED", 1), views=BOTH)
    for batches in (second, other):
        assert not torch.equal(first[0]["index"], batches[0]["index"])
        for key in BOTH:
            assert not torch.equal(by_index(first, key), by_index(batches, key))


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_ranks_share_each_global_batch_as_array_split_does(world_size):
    data = noise_data()
    pieces = [epoch_of(data, views=BOTH, rank=rank, world_size=world_size) for rank in range(world_size)]
    for number, whole in enumerate(epoch_of(data, views=BOTH)):
        size, parts = len(whole["index"]), [piece[number] for piece in pieces]
        expected = [len(part) for part in np.array_split(np.arange(size), world_size)]
        assert [round(part["share"] * size / world_size) for part in parts] == expected
        used = [part for part in parts if part["share"]]
        for key in whole:
            assert torch.equal(torch.cat([part[key] for part in used]), whole[key])
        mean = sum(part["share"] * part["image"].mean().double() for part in parts) / world_size
        torch.testing.assert_close(mean, whole["image"].mean().double(), rtol=1e-4, atol=1e-6)


def test_a_rank_without_samples_gets_one_with_weight_zero():
    data = noise_data(num_train=18)
    last = [epoch_of(data, rank=rank, world_size=4)[-1] for rank in range(4)]
    assert [len(batch["index"]) for batch in last] == [1, 1, 1, 1]
    assert [batch["share"] for batch in last] == [2.0, 2.0, 0.0, 0.0]


def test_the_strong_view_has_a_crop_and_flip_of_its_own(monkeypatch):
    monkeypatch.setattr(memory, "strong_augment", lambda images, seed, epoch, index: images)
    data = noise_data(num_train=400, batch_size=400)
    (batch,) = epoch_of(data, views=BOTH)
    views = torch.from_numpy(random_views(0, STRONG_VIEW, 1, batch["index"].numpy(), flip=True))
    assert torch.equal(batch["image_strong"], data.image_at(batch["index"], views))
    ((_, weak),) = data.train_views(1)
    assert (views.numpy() == weak).sum() < 12  # 2.5 expected by chance


def test_the_strong_view_is_augmented_by_sample_before_it_is_normalised():
    data = noise_data()
    for batch in data.train_batches(2, views=BOTH):
        index = batch["index"].numpy()
        view = torch.from_numpy(random_views(0, STRONG_VIEW, 2, index, flip=True))
        cut = data.images.cut(data.images.start(batch["index"], view), view % 2)
        assert torch.equal(batch["image_strong"], data.normalise(strong_augment(cut, 0, 2, index)))


def test_rotations_are_pillow_s_and_each_view_has_its_own():
    data, source = noise_data("DATASET.AUGMENTATION", "rotate_flip", size=64), noise_source(size=64)
    chain = transforms.Compose([transforms.ToTensor(), transforms.Normalize(source.mean, source.std)])
    seen = []
    for batch in data.train_batches(2, views=BOTH):
        index = batch["index"].numpy()
        drawn = [random_rotations(0, stream, 2, index, True) for stream in (WEAK_VIEW, STRONG_VIEW)]
        turned = {}
        for key, (view, degrees) in zip(BOTH, drawn, strict=True):
            images = [Image.fromarray(source.train_images[place]) for place in index]
            images = [ImageOps.mirror(image) if v % 2 else image for image, v in zip(images, view, strict=True)]
            turned[key] = [image.rotate(d) for image, d in zip(images, degrees, strict=True)]
        assert torch.equal(batch["image"], torch.stack([chain(image) for image in turned["image"]]))
        strong = torch.stack([torch.from_numpy(np.array(image)) for image in turned["image_strong"]])
        assert torch.equal(batch["image_strong"], data.normalise(strong_augment(strong, 0, 2, index)))
        seen += [*drawn[0][1]]
    assert len(set(seen)) == 50


def test_rotated_views_are_not_a_finite_set():
    assert noise_data().views_are_finite
    assert not noise_data("DATASET.AUGMENTATION", "rotate_flip").views_are_finite


def test_the_augmentation_crop_does_not_flip():
    data = noise_data("DATASET.AUGMENTATION", "crop")
    assert data.views_are_finite and not any((views % 2).any() for _, views in data.train_views(1))


def test_a_device_without_strided_windows_gets_batches_cropped_on_the_cpu():
    data = InMemoryData(noise_source(), config("SOLVER.BATCH_SIZE", 16), "meta")
    batches = [*data.train_batches(1, views=BOTH), *data.eval_batches()]
    assert {value.device.type for batch in batches for value in batch.values()} == {"meta"}
    assert data.images.windows.device.type == "cpu" and batches[0]["image_strong"].shape == (16, 3, 32, 32)


def test_an_unknown_view_is_refused():
    with pytest.raises(ValueError, match="image_weak.*expected some of image, image_strong"):
        next(noise_data().train_batches(1, views=("image_weak",)))


def test_the_test_split_is_whole_ordered_and_not_augmented():
    data, source = noise_data("DATASET.TEST.BATCH_SIZE", 10), noise_source()
    batches = list(data.eval_batches())
    assert data.splits == ("test",)
    assert [len(batch["index"]) for batch in batches] == [10, 10, 3]
    assert torch.equal(torch.cat([batch["index"] for batch in batches]), torch.arange(23))
    assert torch.cat([batch["target"] for batch in batches]).tolist() == source.test_labels.tolist()
    chain = transforms.Compose([transforms.ToTensor(), transforms.Normalize(source.mean, source.std)])
    assert torch.equal(batches[0]["image"][9], chain(source.test_images[9]))


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_the_batches_of_an_evaluation(world_size):
    data = noise_data("DATASET.TEST.BATCH_SIZE", 10)
    whole = list(data.eval_batches())
    shares = [list(data.eval_batches("test", rank, world_size)) for rank in range(world_size)]
    assert sum(map(len, shares)) == len(whole) == 3
    for number, batch in enumerate(whole):
        same(shares[number % world_size][number // world_size], batch)


def test_a_validation_split_is_taken_from_the_training_images():
    data = noise_data("DATASET.VAL_FRACTION", 0.2, "DATASET.TRAIN_FRACTION", 0.5)
    assert data.splits == ("val", "test")
    assert (data.info.num_train, num_eval(data, "val"), num_eval(data, "test")) == (20, 10, 23)
    middle = torch.full((20,), 4 * 18 + 4 * 2)
    train, val = data.image_at(torch.arange(20), middle), next(data.eval_batches("val"))
    everything = noise_data().image_at(torch.arange(50), torch.full((50,), 4 * 18 + 4 * 2))
    in_train, in_val = (
        [int((image == everything).flatten(1).all(1).nonzero()) for image in part] for part in (train, val["image"])
    )
    assert not set(in_train) & set(in_val) and in_train == sorted(in_train)
    assert val["target"].tolist() == [place % 5 for place in in_val]
    assert data.info.targets.tolist() == [place % 5 for place in in_train]


def test_the_fingerprint_is_that_of_the_images_and_labels_in_use():
    source = noise_source()
    digest = hashlib.sha256(b"(50, 32, 32, 3)")
    digest.update(source.train_labels.astype("<i8").tobytes())
    digest.update(source.train_images.tobytes())
    assert noise_data().info.fingerprint == digest.hexdigest()
    assert noise_data("EXPERIMENT.SEED", 5).info.fingerprint == digest.hexdigest()
    assert noise_data("DATASET.TRAIN_FRACTION", 0.5).info.fingerprint != digest.hexdigest()


def test_an_unknown_data_set_is_a_user_error():
    with pytest.raises(UserError, match="^DATASET.TYPE: unknown data set 'cifra100'; nearest: cifar100"):
        build_data(config("DATASET.TYPE", "cifra100"), "cpu")


def test_names_ignore_case():
    assert build_data(config("DATASET.TYPE", "Digits"), "cpu").info.name == "digits"


def test_order_and_augmentation_can_have_a_seed_of_their_own():
    run_0 = epoch_of(noise_data("EXPERIMENT.SEED", 0))
    for one, two in zip(run_0, epoch_of(noise_data("EXPERIMENT.SEED", 7, "DATASET.SEED", 0)), strict=True):
        same(one, two)
    assert not torch.equal(run_0[0]["index"], epoch_of(noise_data("EXPERIMENT.SEED", 7))[0]["index"])
