"""Reading CIFAR from both official layouts; what happens when files are missing or damaged."""

import hashlib
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision import datasets

from mdistiller.data import build_data, cifar
from mdistiller.errors import UserError
from tests.data.support import REAL, config, needs_cifar100

LAYOUTS = {"cifar10": cifar.CIFAR10, "cifar100": cifar.CIFAR100}
RECORDS = 20  # in each file


def fake_records(layout, seed):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (RECORDS, 3, 32, 32), dtype=np.uint8), rng.permutation(RECORDS) % layout.num_classes


def write_binary(root, layout):
    folder = root / layout.binary_folder
    folder.mkdir()
    for seed, (name, _) in enumerate(layout.train_files + layout.test_files):
        pixels, labels = fake_records(layout, seed)
        coarse = [np.full((RECORDS, 1), 99)] * (layout.label_bytes - 1)
        np.concatenate([*coarse, labels[:, None], pixels.reshape(RECORDS, -1)], axis=1).astype(np.uint8).tofile(
            folder / name
        )
    (folder / layout.names_file).write_text("\n".join(f"class{i}" for i in range(layout.num_classes)) + "\n\n")
    return folder


def write_python(root, layout):
    """The files of torchvision's layout; returns a reader that knows their checksums."""
    folder = root / layout.python_folder
    folder.mkdir()

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    def batch(name, seed):
        pixels, labels = fake_records(layout, seed)
        key = "fine_labels" if layout.num_classes == 100 else "labels"
        return write(name, {"data": pixels.reshape(RECORDS, -1), key: labels.tolist()})

    names = [name for name, _ in layout.reader.train_list]
    train = [batch(name, seed) for seed, name in enumerate(names)]
    test = [batch(layout.reader.test_list[0][0], len(names))]
    meta = dict(layout.reader.meta)
    _, meta["md5"] = write(meta["filename"], {meta["key"]: [f"class{i}" for i in range(layout.num_classes)]})
    return type("Reader", (layout.reader,), {"train_list": train, "test_list": test, "meta": meta})


@pytest.fixture(params=sorted(LAYOUTS))
def fake(request, tmp_path, monkeypatch):
    """(root, layout) with both layouts written, 20 records a file."""
    layout = LAYOUTS[request.param]
    write_binary(tmp_path, layout)
    files = {key: tuple((name, RECORDS) for name, _ in getattr(layout, key)) for key in ("train_files", "test_files")}
    monkeypatch.setattr(datasets, layout.name.upper(), write_python(tmp_path, layout))
    return tmp_path, replace(layout, **files)


def remove(folder):
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


@pytest.mark.parametrize("kept", ["python", "binary"])
def test_both_layouts_give_the_images_labels_and_names_in_the_files_order(fake, kept):
    root, layout = fake
    remove(root / (layout.binary_folder if kept == "python" else layout.python_folder))
    source = cifar.read_cifar(layout, root, download=False)
    files = len(layout.train_files)
    records = [fake_records(layout, number) for number in range(files + 1)]
    train_images, test_images = np.concatenate([pixels for pixels, _ in records[:-1]]), records[-1][0]
    assert (source.train_images == train_images.transpose(0, 2, 3, 1)).all()
    assert (source.test_images == test_images.transpose(0, 2, 3, 1)).all()
    assert source.train_labels.tolist() == np.concatenate([labels for _, labels in records[:-1]]).tolist()
    assert source.test_labels.tolist() == records[-1][1].tolist()
    assert source.classes == tuple(f"class{i}" for i in range(layout.num_classes)) and source.flip
    assert (source.name, source.family, source.train_labels.dtype) == (layout.name, "cifar", np.int64)


def test_both_layouts_have_one_fingerprint(fake, monkeypatch):
    root, layout = fake
    monkeypatch.setattr(cifar, layout.name.upper(), layout)
    opts = "DATASET.TYPE", layout.name, "DATASET.ROOT", str(root)
    from_python = build_data(config(*opts), "cpu").info.fingerprint
    remove(root / layout.python_folder)
    assert build_data(config(*opts), "cpu").info.fingerprint == from_python


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_missing_data_is_reported_with_the_folder_and_what_to_do(tmp_path, name):
    with pytest.raises(UserError, match="DATASET.ROOT") as error:
        build_data(config("DATASET.TYPE", name, "DATASET.ROOT", str(tmp_path / "nowhere")), "cpu")
    message = str(error.value)
    assert str(tmp_path / "nowhere") in message and "DATASET.DOWNLOAD True" in message and "\n" not in message
    assert LAYOUTS[name].binary_folder in message and LAYOUTS[name].python_folder in message


@pytest.mark.parametrize("change, found", [(-1, "damaged"), (-3000, "damaged"), (1, "damaged"), (None, "missing")])
def test_a_binary_file_of_a_wrong_size_is_named(fake, change, found):
    root, layout = fake
    remove(root / layout.python_folder)
    path = root / layout.binary_folder / layout.test_files[0][0]
    content = path.read_bytes()
    path.unlink()
    if change is not None:
        path.write_bytes((content + bytes(1))[: len(content) + change])
    with pytest.raises(UserError, match=found) as error:
        cifar.read_cifar(layout, root, download=False)
    assert str(path) in str(error.value)


def test_a_file_with_too_few_records_is_reported_as_damaged(tmp_path):
    write_binary(tmp_path, cifar.CIFAR100)  # 20 records where there should be 50,000
    with pytest.raises(UserError, match=r"train.bin is damaged: 61480 bytes, expected 153700000 \(50000 images\)"):
        cifar.read_cifar(cifar.CIFAR100, tmp_path, download=False)


def test_a_label_out_of_range_is_reported_as_damage(fake):
    root, layout = fake
    remove(root / layout.python_folder)
    path = root / layout.binary_folder / layout.train_files[0][0]
    content = bytearray(path.read_bytes())
    content[layout.label_bytes - 1] = 200
    path.write_bytes(content)
    with pytest.raises(UserError, match="label 200"):
        cifar.read_cifar(layout, root, download=False)


@pytest.mark.parametrize("state", ["damaged", "missing"])
def test_a_python_file_with_a_wrong_checksum_is_named_and_never_unpickled(fake, state):
    root, layout = fake
    path = root / layout.python_folder / layout.reader.test_list[0][0]
    if state == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=state) as error:
        cifar.read_cifar(layout, root, download=False)
    assert str(path) in str(error.value) and "DATASET.DOWNLOAD True" in str(error.value)


def test_a_failed_download_is_reported_in_one_line(tmp_path, monkeypatch):
    def refuse(self):
        raise OSError("no route to host")

    monkeypatch.setattr(datasets.CIFAR100, "download", refuse)
    with pytest.raises(UserError, match="DATASET.DOWNLOAD.*cifar-100-python.tar.gz.*no route to host"):
        cifar.read_cifar(cifar.CIFAR100, tmp_path, download=True)


def test_an_incomplete_list_of_class_names_is_ignored(fake):
    root, layout = fake
    remove(root / layout.python_folder)
    (root / layout.binary_folder / layout.names_file).write_text("one\ntwo\n")
    assert cifar.read_cifar(layout, root, download=False).classes is None


@pytest.fixture(scope="module")
def real():
    return build_data(config("DATASET.TYPE", "cifar100", "DATASET.ROOT", REAL), "cpu")


@needs_cifar100
def test_the_real_set_has_500_and_100_images_a_class_in_782_batches(real):
    assert real.info.targets.bincount().tolist() == [500] * 100
    assert torch.cat([batch["target"] for batch in real.eval_batches()]).bincount().tolist() == [100] * 100
    assert real.num_batches == 782 and len(next(real.train_batches(1, start=781))["index"]) == 16
    assert len(real.info.classes) == 100 and {"apple", "worm"} <= set(real.info.classes)


@needs_cifar100
def test_the_real_set_has_the_statistics_it_is_normalised_with(real):
    for channel in range(3):
        counts = np.bincount(real.images.interior[..., channel].flatten().numpy(), minlength=256)
        levels = np.arange(256) / 255
        mean = np.average(levels, weights=counts)
        deviation = np.sqrt(np.average((levels - mean) ** 2, weights=counts))
        np.testing.assert_allclose((mean, deviation), (real.info.mean[channel], real.info.std[channel]), atol=3e-4)
