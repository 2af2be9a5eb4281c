"""ImageNet and folders of large images: batches, workers, and errors."""

import errno
import gc
import hashlib
import logging
import multiprocessing.synchronize
import signal
import subprocess
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from mdistiller import workers
from mdistiller.data import build_data
from mdistiller.data.crops import CROP_DRAWS, random_resized_crop
from mdistiller.data.files import open_image
from mdistiller.data.hashing import STRONG_VIEW, WEAK_VIEW, random_bits, uniform
from mdistiller.data.images import CENTRE
from mdistiller.data.memory import InMemoryData
from mdistiller.data.streamed import StreamedData
from mdistiller.data.strong import strong_augment
from mdistiller.errors import RunError, UserError
from tests.data.support import BOTH, REAL, by_index, config, needs, num_eval, write_folders

SIZE = 72  # larger than images that are kept in memory


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Three classes of eight training and two validation images."""
    return write_folders(tmp_path_factory.mktemp("images"), per_class=(8, 2))


def build(root, *opts, batch_size=10, workers=0, size=SIZE) -> StreamedData:
    opts = ["DATASET.ROOT", str(root), "DATASET.NUM_WORKERS", workers, "DATASET.IMAGE_SIZE", size, *opts]
    return build_data(config("DATASET.TYPE", "imagefolder", "SOLVER.BATCH_SIZE", batch_size, *opts), "cpu")


def epoch_of(data, epoch=1, **kwargs):
    return list(data.train_batches(epoch, **{"views": BOTH, **kwargs}))


def same(one, two):
    assert len(one) == len(two)
    for first, second in zip(one, two, strict=True):
        assert first.keys() == second.keys()
        for key in first:
            assert torch.equal(torch.as_tensor(first[key]), torch.as_tensor(second[key])), key


def test_the_metadata_and_an_epoch(root):
    data = build(root)
    info = data.info
    assert (info.name, info.family, info.num_classes, info.image_size) == ("imagefolder", "imagenet", 3, SIZE)
    assert info.classes == ("ant", "bee", "cat") and info.targets.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert (info.num_train, data.num_batches, data.splits, num_eval(data)) == (24, 3, ("test",), 6)
    assert not data.views_are_finite
    batches = epoch_of(data)
    assert [len(batch["target"]) for batch in batches] == [10, 10, 4]
    assert torch.equal(by_index(batches, "target"), info.targets)
    for batch in batches:
        assert batch.keys() == {"image", "image_strong", "target", "index"}
        for key in BOTH:
            assert batch[key].dtype == torch.float32 and batch[key].shape[1:] == (3, SIZE, SIZE)
            assert batch[key].is_contiguous(memory_format=torch.channels_last)


def test_training_images_are_random_resized_crops_of_the_files_and_strong_ones_of_their_own(root):
    data = build(root)
    normalise = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(data.info.mean, data.info.std)])
    for batch in data.train_batches(4, views=BOTH):
        index = batch["index"].numpy()
        crops = {}
        for stream in (WEAK_VIEW, STRONG_VIEW):
            draws = uniform(random_bits(0, stream, 4, index, CROP_DRAWS))
            images = [v2.functional.pil_to_tensor(open_image(data.files["train"].path(place))) for place in index]
            crops[stream] = [random_resized_crop(i, d, SIZE, True) for i, d in zip(images, draws, strict=True)]
        torch.testing.assert_close(batch["image"], torch.stack([normalise(image) for image in crops[WEAK_VIEW]]))
        strong = torch.stack([image.permute(1, 2, 0) for image in crops[STRONG_VIEW]]).contiguous()
        assert torch.equal(batch["image_strong"], data.normalise(strong_augment(strong, 0, 4, index)))


def test_test_images_are_the_middle_of_the_files_in_order(root):
    data = build(root, "DATASET.TEST.BATCH_SIZE", 4)
    chain = v2.Compose([
        v2.PILToTensor(), v2.Resize(round(SIZE * 256 / 224), antialias=True), v2.CenterCrop(SIZE),
        v2.ToDtype(torch.float32, scale=True), v2.Normalize(data.info.mean, data.info.std),
    ])
    batches = list(data.eval_batches())
    assert [batch["index"].tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5]]
    assert torch.cat([batch["target"] for batch in batches]).tolist() == [0, 0, 1, 1, 2, 2]
    images = [chain(open_image(root / "val" / name)) for name in ("ant/0.png", "bee/1.png")]
    torch.testing.assert_close(batches[0]["image"][[0, 3]], torch.stack(images))
    shares = [list(data.eval_batches("test", rank, 2)) for rank in range(2)]
    same([shares[0][0], shares[1][0]], batches)
    places = np.array([9, 0])  # of training images, without augmentation
    (plain,) = data.plain_batches(places)
    assert plain["index"].tolist() == [9, 0] and plain["target"].tolist() == [1, 0]
    torch.testing.assert_close(
        plain["image"], torch.stack([chain(open_image(data.files["train"].path(place))) for place in places]))


@pytest.mark.parametrize("batch_size, workers", [(1, 0), (7, 0), (10, 2), (64, 1)])
def test_neither_view_depends_on_batch_size_or_workers(root, batch_size, workers):
    one, two = epoch_of(build(root)), epoch_of(build(root, batch_size=batch_size, workers=workers))
    for key in BOTH:
        assert torch.equal(by_index(one, key), by_index(two, key))


def test_seeds_and_epochs_change_order_and_views(root):
    first = epoch_of(build(root))
    for batches in (epoch_of(build(root), epoch=2), epoch_of(build(root, "EXPERIMENT.SEED", 1))):
        assert not torch.equal(first[0]["index"], batches[0]["index"])
        for key in BOTH:
            assert not torch.equal(by_index(first, key), by_index(batches, key))


def test_an_abandoned_pass_does_not_change_a_resumed_one(root):
    data = build(root, workers=2)
    whole = epoch_of(build(root))
    half = data.train_batches(3, views=BOTH)
    next(half)
    same(epoch_of(data, start=1), whole[1:])  # while the other pass is open
    half.close()
    same(epoch_of(data, start=3), [])
    same(epoch_of(data), whole)


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_ranks_share_each_global_batch_as_array_split_does(root, world_size):
    data = build(root)
    pieces = [epoch_of(data, rank=rank, world_size=world_size) for rank in range(world_size)]
    for number, whole in enumerate(epoch_of(data)):
        parts = [piece[number] for piece in pieces]
        sizes = [len(part) for part in np.array_split(np.arange(len(whole["index"])), world_size)]
        assert [round(part["share"] * len(whole["index"]) / world_size) for part in parts] == sizes
        used = [part for part in parts if part["share"]]
        for key in whole:
            assert torch.equal(torch.cat([part[key] for part in used]), whole[key])


def test_fractions_are_those_of_the_sets_in_memory(root):
    opts = ("DATASET.VAL_FRACTION", 0.25, "DATASET.TRAIN_FRACTION", 0.5)
    large, small = build(root, *opts), build(root, *opts, size=32)
    assert isinstance(small, InMemoryData) and large.splits == small.splits == ("val", "test")
    assert torch.equal(large.info.targets, small.info.targets) and large.info.num_train == 9
    assert num_eval(large, "val") == num_eval(small, "val") == 6
    names = [large.files[split].name(place) for split in ("train", "val") for place in range(6)]
    assert len(set(names)) == 12
    assert len(next(large.eval_batches("val"))["target"]) == 6


def test_without_flips_no_crop_is_mirrored(root):
    flipped, straight = epoch_of(build(root)), epoch_of(build(root, "DATASET.AUGMENTATION", "crop"))
    one, two = by_index(flipped, "image"), by_index(straight, "image")
    equal = (one == two).flatten(1).all(1)
    torch.testing.assert_close(one[~equal], two[~equal].flip(3))  # resampling is symmetric
    assert 5 < equal.sum() < 19
    with pytest.raises(UserError, match="DATASET.AUGMENTATION: rotate_flip"):
        build(root, "DATASET.AUGMENTATION", "rotate_flip")


def test_the_fingerprint_is_that_of_labels_names_and_sizes(root):
    data = build(root)
    digest = hashlib.sha256(data.info.targets.numpy().astype("<i8").tobytes())
    for name in sorted(f"{path.parent.name}/{path.name}" for path in (root / "train").glob("*/*")):
        digest.update(f"{name}\0{(root / 'train' / name).stat().st_size}\0".encode())
    assert data.info.fingerprint == digest.hexdigest()
    assert build(root, "DATASET.TRAIN_FRACTION", 0.5).info.fingerprint != digest.hexdigest()


def test_an_image_folder_up_to_64_pixels_is_kept_in_memory(root):
    data = build(root, size=64)
    assert isinstance(data, InMemoryData)
    assert (data.info.name, data.info.family, data.info.image_size) == ("imagefolder", "cifar", 64)
    assert data.views_are_finite and data.images.interior.shape == (24, 64, 64, 3)
    image = open_image(root / "train" / "ant" / "0.png")
    assert image.size == (90, 60)
    middle = data.image_at(torch.tensor([0]), torch.tensor([CENTRE]))
    expected = image.resize((64, 64), Image.Resampling.BILINEAR, box=(15, 0, 75, 60))
    assert torch.equal(middle, data.normalise(torch.from_numpy(np.array(expected))[None]))


def test_imagenet_with_another_number_of_classes_gives_a_warning(root, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("mdistiller"), "propagate", True)
    data = build(root, "DATASET.TYPE", "imagenet")
    assert (data.info.name, data.info.family, data.info.num_classes) == ("imagenet", "imagenet", 3)
    assert "has 3 classes, not the 1000 of ImageNet" in caplog.text


# ---- what goes wrong


def test_a_broken_image_ends_the_run_before_it_starts_or_is_left_out(tmp_path):
    root = write_folders(tmp_path, suffix=".jpg")
    path = root / "train" / "bee" / "2.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    for size in (SIZE, 32):
        with pytest.raises(UserError, match=r"1 broken image: .*bee/2.jpg \(.*truncated"):
            build(root, size=size)
        data = build(root, "DATASET.SKIP_BROKEN", True, size=size)
        assert data.info.targets.tolist() == [0] * 4 + [1] * 3 + [2] * 4
        assert len(torch.cat([batch["target"] for batch in epoch_of(data)])) == 11


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_becomes_unreadable_during_training_is_named(tmp_path, workers):
    root = write_folders(tmp_path)
    data = build(root, workers=workers)
    (root / "train" / "bee" / "2.png").unlink()
    with pytest.raises(UserError, match=r"bee/2.png \(No such file or directory\): found broken while training"):
        epoch_of(data)


def test_too_little_shared_memory_fails_the_run_with_advice(root, monkeypatch):
    def full(tensor):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)  # workers are forked and inherit it
    with pytest.raises(RunError, match=r"/dev/shm .*No space left on device.* DATASET.NUM_WORKERS 0"):
        epoch_of(build(root, workers=1))
    assert len(epoch_of(build(root, workers=0))) == 3


def test_without_dev_shm_only_the_data_workers_are_missing(root, monkeypatch):
    def refuse(lock, *args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(multiprocessing.synchronize.SemLock, "__init__", refuse)
    with pytest.raises(RunError, match=r"cannot start: Read-only file system; .* /dev/shm .* DATASET.NUM_WORKERS 0"):
        epoch_of(build(root, workers=1))
    assert len(epoch_of(build(root, workers=0))) == 3


def test_reading_does_not_use_the_run_s_random_generator(root):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    epoch_of(build(root, workers=1))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="this system has no sigwaitinfo")
def test_workers_ignore_signals_to_the_process_group_and_end_with_their_data(root):
    before = set(multiprocessing.active_children())
    data = build(root, batch_size=2, workers=2)
    passed = data.train_batches(1)
    next(passed)
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 2
    for name in ("TERM", "INT"):
        subprocess.run(["kill", f"-{name}", *(str(worker.pid) for worker in workers)], check=True)
    time.sleep(0.2)
    assert len(list(passed)) == 11 and len(epoch_of(data, epoch=2)) == 12
    assert set(multiprocessing.active_children()) - before == workers  # the same ones in every epoch
    next(iter(workers)).terminate()  # as at exit of a parent that has not closed its data
    next(iter(workers)).join(10)
    assert next(iter(workers)).exitcode == 0
    del data, passed
    gc.collect()
    assert set(multiprocessing.active_children()) <= before


@pytest.mark.parametrize("waits, held", [(True, {signal.SIGINT, signal.SIGTERM}), (False, {signal.SIGINT})])
def test_no_worker_is_interrupted_while_it_starts(monkeypatch, waits, held):
    """Without sigwaitinfo (macOS), a worker for which SIGTERM is blocked could not be ended."""

    class Loader:
        num_workers = 0

        def __iter__(self):
            return iter([signal.pthread_sigmask(signal.SIG_BLOCK, ())])

    monkeypatch.setattr(workers, "CAN_WAIT_FOR_SIGNALS", waits)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert list(workers.begin(Loader())) == [before | held]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def as_a_worker(ready):
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # as the process that starts it
    workers.leave_signals_to_the_parent(0)
    ready.set()
    time.sleep(60)


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="this system has no sigwaitinfo")
@pytest.mark.parametrize("method", ["fork", "forkserver"])  # the default of Linux before Python 3.14, and from it on
def test_a_worker_ends_by_a_signal_of_the_process_that_reads_its_batches(method):
    context = multiprocessing.get_context(method)
    ready = context.Event()
    worker = context.Process(target=as_a_worker, args=(ready,), daemon=True)
    worker.start()
    try:
        assert ready.wait(60)
        subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
        worker.join(0.2)
        assert worker.is_alive()
        worker.terminate()
        worker.join(10)
        assert worker.exitcode == 0
    finally:
        worker.kill()


@pytest.mark.parametrize(
    "error, kind, says",
    [
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), RunError, "DataLoader worker"),
        (ConnectionResetError(104, "Connection reset by peer"), RunError, "DataLoader worker ended"),
        (EOFError(), RunError, "DataLoader worker ended"),
        (RuntimeError("a bug"), RuntimeError, "^a bug$"),
    ],
)
def test_a_worker_killed_by_the_system_fails_the_run(root, error, kind, says):
    class Ended:
        num_workers = 1

        def __iter__(self):
            raise error

    data = build(root)
    data.workers._idle.append(([], Ended()))
    with pytest.raises(kind, match=says):
        epoch_of(data)


@pytest.mark.parametrize("where", ["in the step", "while waiting"])
def test_a_killed_worker_fails_the_run_wherever_the_run_is(root, where):
    before = set(multiprocessing.active_children())
    data = build(root, batch_size=2, workers=1)
    passed = data.train_batches(1)
    next(passed)
    (worker,) = set(multiprocessing.active_children()) - before
    with pytest.raises(RunError, match=r"^DataLoader worker.*\(a smaller DATASET.NUM_WORKERS needs less memory\)$"):
        worker.kill()
        if where == "in the step":
            time.sleep(10)  # SIGCHLD comes while the step computes
        list(passed)


@needs("imagenet-sample")
def test_real_images_of_different_sizes_are_read():
    opts = ("DATASET.TYPE", "imagenet", "DATASET.NUM_WORKERS", 2)
    data = build(REAL, *opts, size=224, batch_size=16)
    assert (data.info.num_train, data.info.num_classes, data.num_batches) == (40, 40, 3)
    same(epoch_of(data), epoch_of(build(REAL, *opts[:3], 0, size=224, batch_size=16)))
    images = torch.cat([batch["image"] for batch in data.eval_batches()])
    assert images.shape == (40, 3, 224, 224) and images.mean().abs() < 0.5 and 0.5 < images.std() < 1.5
