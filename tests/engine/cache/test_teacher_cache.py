"""Logits from the cache equal the teacher's, whatever the cache contains."""

import json
import os
import shutil
from collections import namedtuple

import numpy as np
import pytest
import torch

from mdistiller.data import build_data
from mdistiller.data.images import NUM_VIEWS
from mdistiller.distillers import DISTILLERS
from mdistiller.engine.cache import teacher_cache
from mdistiller.engine.cache.teacher_cache import describe, folder_of, open_cache
from mdistiller.engine.folding import fold_teacher
from mdistiller.errors import UserError
from mdistiller.models import build_model
from tests.engine.support import REPOSITORY, assert_same_weights, run, small_cfg, stopped_after, weights
from tests.forked import run_tool

CPU = torch.device("cpu")
CACHED = ("TEACHER_CACHE.ENABLED", True, "SOLVER.EPOCHS", 2)


def teacher_of(seed=0, name="resnet8", num_classes=10):
    """A network with its own running statistics, in eval mode."""
    torch.manual_seed(seed)
    network = build_model(name, num_classes)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return network.eval()


def cache_of(folder, *opts, teacher=None):
    cfg = small_cfg(folder, "KD", "TEACHER_CACHE.DIR", str(folder), *opts)
    data, teacher = build_data(cfg, CPU), teacher or teacher_of()
    return open_cache(cfg, data, teacher, None, CPU)


def some(number, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 150, number), 2 * rng.integers(0, NUM_VIEWS // 2, number)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_row_is_bit_identical_whether_computed_or_stored_alone_or_in_a_batch(tmp_path, dtype):
    index, view = some(200)
    index, view = np.unique(np.stack([index, view]), axis=1)
    cache = cache_of(tmp_path / "a", "TEACHER_CACHE.DTYPE", dtype)
    computed = cache.logits(index, view)
    assert cache.misses == cache.lookups == len(index)
    assert torch.equal(cache.logits(index, view), computed) and cache.misses == len(index)
    mixed = cache_of(tmp_path / "b", "TEACHER_CACHE.DTYPE", dtype)
    for part in (slice(5, 6), slice(3, 40), slice(None, None, 3), np.arange(len(index))[::-1].copy()):
        assert torch.equal(mixed.logits(index[part], view[part]), computed[part]), part
    assert mixed.misses == len(index)


@pytest.mark.parametrize("dtype, unit", [("float16", 2.0**-11), ("float32", 2.0**-20)])
def test_rows_are_the_teachers_within_the_rounding_of_the_dtype(tmp_path, dtype, unit):
    teacher, (index, view) = teacher_of(), some(50)
    cache = cache_of(tmp_path, "TEACHER_CACHE.DTYPE", dtype, teacher=teacher)
    with torch.no_grad():
        live = teacher(cache.data.image_at(torch.from_numpy(index), torch.from_numpy(view))).logits
    stored = cache.logits(index, view)
    assert stored.dtype == torch.float32
    assert ((stored - live).abs() <= unit * live.abs() + 1e-6).all()
    assert dtype == "float32" or torch.equal(stored, stored.half().float())


@pytest.mark.parametrize("start, rank, world_size", [(0, 0, 1), (1, 0, 1), (0, 1, 3), (2, 2, 3)])
def test_batches_get_the_logits_of_their_own_images(tmp_path, start, rank, world_size):
    cache, teacher = cache_of(tmp_path, "TEACHER_CACHE.DTYPE", "float32"), teacher_of()
    place = {"start": start, "rank": rank, "world_size": world_size}
    batches = cache.attach(cache.data.train_batches(2, **place), 2, **place)
    number = 0
    for batch in batches:
        with torch.no_grad():
            torch.testing.assert_close(batch["logits_teacher"], teacher(batch["image"]).logits, rtol=1e-4, atol=1e-4)
        number += 1
    assert number == 3 - start


def metadata_with(folder, *opts, sha256="ab", device=CPU, **changes):
    cfg = small_cfg(folder, "KD", *opts)
    data = build_data(cfg, CPU)
    for name, value in changes.items():
        object.__setattr__(data.info, name, value)
    return describe(cfg, data, None, sha256, device)["key"]


@pytest.mark.parametrize(
    "change",
    [
        {"sha256": "cd"},
        {"fingerprint": "other images"},
        {"mean": (0.5, 0.5, 0.5)},
        {"std": (1.0, 1.0, 1.0)},
        {"num_classes": 11},
        {"family": "tiny_imagenet"},
        {"name": "other"},
        {"device": torch.device("cuda")},
        ("TEACHER_CACHE.DTYPE", "float32"),
        ("DISTILLER.TEACHER", "resnet14"),
        ("DISTILLER.TEACHER_INPUT_SIZE", 64),
        ("DISTILLER.TEACHER_NORMALIZATION", "own"),
        ("DISTILLER.FOLD_TEACHER", True),
        ("DATASET.TRAIN_FRACTION", 0.6),
        ("SOLVER.AMP", "bf16"),
        ("DISTILLER.TEACHER_AMP", "bf16"),
        ("SOLVER.CHANNELS_LAST", False),
        ("COMPILE", True),
    ],
)
def test_another_teacher_data_normalisation_or_computation_has_another_cache(tmp_path, change):
    opts, changes = ((), change) if isinstance(change, dict) else (change, {})
    changed = metadata_with(tmp_path, *opts, **changes)
    assert folder_of(tmp_path, changed) != folder_of(tmp_path, metadata_with(tmp_path))


def test_seed_method_student_and_batch_size_share_a_cache(tmp_path):
    opts = ("EXPERIMENT.SEED", 5, "DISTILLER.TYPE", "EA-DKD", "DISTILLER.STUDENT", "resnet14", "SOLVER.BATCH_SIZE", 32)
    assert folder_of(tmp_path, metadata_with(tmp_path, *opts)) == folder_of(tmp_path, metadata_with(tmp_path))


def test_the_check_finds_rows_that_are_not_the_teachers_and_damage_is_computed_anew(tmp_path):
    index, view = some(64)
    cache = cache_of(tmp_path)
    rows = cache.logits(index, view)
    assert cache.check(16, 1e-4) == 16
    with open(cache.store.folder / "logits.bin", "r+b") as file:
        file.write(b"\xff" * 5)  # in the first record
    again = cache_of(tmp_path)
    assert torch.equal(again.logits(index, view), rows) and again.misses == 1
    last = again.store.count - 1
    entry = np.flatnonzero(again.store.index == last)
    wrong = again.store.read(entry)[0] * np.float16(1.01)  # the checksum is correct; only the teacher shows the error
    again.store.count = last
    again.store._append(entry.astype(np.int32), wrong)
    with pytest.raises(UserError, match=r"1 of \d+ stored rows differ .*; delete it: python tools"):
        cache_of(tmp_path, "TEACHER_CACHE.CHECK", 1000)


def test_rows_of_another_teacher_under_this_ones_name_are_found_by_the_check(tmp_path):
    cache = cache_of(tmp_path)
    cache.logits(*some(64))
    metadata = json.loads((cache.store.folder / "metadata.json").read_text())
    other = cache_of(tmp_path, teacher=teacher_of(1))
    shutil.rmtree(other.store.folder)
    shutil.copytree(cache.store.folder, other.store.folder)
    metadata["key"]["teacher_sha256"] = other.store.metadata["key"]["teacher_sha256"]
    (other.store.folder / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(UserError, match="16 of 16 stored rows"):
        cache_of(tmp_path, teacher=teacher_of(1))


def test_sizes_are_announced_before_a_cache_is_made_and_a_small_disk_is_refused(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(teacher_cache.log, "propagate", True)
    caplog.set_level("INFO", logger="mdistiller")
    disk = namedtuple("Disk", "total used free")
    row = 10 * 2 + 4 + 4  # float16 values, checksum, entry number
    need = 150 * 3 * row  # three epochs
    monkeypatch.setattr(teacher_cache.shutil, "disk_usage", lambda path: disk(0, 0, need - 1))
    with pytest.raises(UserError, match=r"may grow by 12.6 kB, 12.6 kB are free; set a folder on a larger disk"):
        cache_of(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    assert f"holds 0 of {150 * 81} rows in 0.0 kB (291.6 kB when full); this run may add 12.6 kB" in caplog.text
    monkeypatch.setattr(teacher_cache.shutil, "disk_usage", lambda path: disk(0, 0, need))
    assert cache_of(tmp_path / "cache").store.folder.is_dir()


def test_logits_beyond_float16_are_refused_by_key(tmp_path):
    teacher = teacher_of()
    teacher.fc.bias.data[3] = 1e5
    cache = cache_of(tmp_path, teacher=teacher)
    with pytest.raises(UserError, match="TEACHER_CACHE.DTYPE: float16 cannot hold"):
        cache.logits(*some(3))


# --- runs ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def from_empty(tmp_path_factory):
    """A run that filled its cache, and the folder of the cache."""
    folder = tmp_path_factory.mktemp("from_empty")
    return run(folder / "out", "EA-KD", *CACHED, "TEACHER_CACHE.DIR", str(folder / "cache")), folder / "cache"


def test_a_run_does_not_depend_on_what_the_cache_held_nor_on_where_it_was_stopped(from_empty, tmp_path):
    unbroken, directory = from_empty
    assert_same_weights(run(tmp_path / "full", "EA-KD", *CACHED, "TEACHER_CACHE.DIR", str(directory)), unbroken)
    opts = (*CACHED, "TEACHER_CACHE.DIR", str(tmp_path / "other cache"))
    with stopped_after(2, 1):
        run(tmp_path / "broken", "EA-KD", *opts)
    assert_same_weights(run(tmp_path / "broken", "EA-KD", *opts, resume=True), unbroken)
    assert "teacher_cache" in json.loads((unbroken / "run.json").read_text())


def test_other_methods_and_seeds_find_what_a_run_has_stored(tmp_path, capsys):
    weights_file = tmp_path / "teacher.pth"
    torch.save({"model": teacher_of().state_dict()}, weights_file)
    opts = ("TEACHER_CACHE.ENABLED", True, "SOLVER.EPOCHS", 1,
            "TEACHER_CACHE.DIR", str(tmp_path / "cache"), "DISTILLER.TEACHER_CHECKPOINT", str(weights_file))
    run(tmp_path / "a", "KD", *opts)
    run(tmp_path / "b", "EA-DKD", *opts)
    assert "100.0 % of 150 rows were found, 0 computed" in capsys.readouterr().out
    run(tmp_path / "c", "KD", *opts, "EXPERIMENT.SEED", 1)
    assert len(list((tmp_path / "cache").iterdir())) == 1


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-4), ("float16", 3e-3)])
def test_losses_and_accuracy_are_those_of_a_live_teacher(tmp_path, dtype, tolerance):
    opts = ("SOLVER.EPOCHS", 2, "SOLVER.LR", 0.01)
    live = run(tmp_path / "live", "EA-KD", *opts)
    cached = run(tmp_path / "cached", "EA-KD", *opts, "TEACHER_CACHE.ENABLED", True, "TEACHER_CACHE.DTYPE", dtype,
                 "TEACHER_CACHE.DIR", str(tmp_path / "cache"))
    for one, other in zip(*(open(folder / "metrics.jsonl") for folder in (live, cached)), strict=True):
        one, other = json.loads(one), json.loads(other)
        for name in ("train_loss", "train_kd", "weight_mean", "test_loss"):
            assert other[name] == pytest.approx(one[name], rel=tolerance), name
        assert other["test_top1"] == pytest.approx(one["test_top1"], abs=0.2)


@pytest.mark.parametrize(
    "method, opts, reason",
    [
        ("FITNET", (), "FITNET reads the teacher's features"),
        ("OFD", (), "OFD reads the teacher's features"),
        ("EA-MLD", (), r"MLD uses random views that do not repeat (image_strong)"),
        ("KD", ("DATASET.AUGMENTATION", "rotate_flip"), "the augmentation of digits has no fixed set of views"),
    ],
)
def test_outputs_that_cannot_be_stored_are_computed_live_with_one_message(tmp_path, capsys, method, opts, reason):
    run(tmp_path / "out", method, "TEACHER_CACHE.ENABLED", True, "TEACHER_CACHE.DIR", str(tmp_path / "cache"),
        "SOLVER.EPOCHS", 1, "DATASET.TRAIN_FRACTION", 0.1, *opts)
    said = capsys.readouterr().out
    assert said.count("teacher cache") == 1 and f"the teacher runs in every step: {reason}" in said
    assert not (tmp_path / "cache").exists()


def test_the_command_fills_lists_verifies_and_deletes(tmp_path):
    def cache(*words):
        done = run_tool("cache", words, REPOSITORY)
        return done.returncode, done.stdout, done.stderr

    torch.save({"model": teacher_of().state_dict()}, tmp_path / "teacher.pth")
    (tmp_path / "run.yaml").write_text(
        "DATASET: {TYPE: digits, TRAIN_FRACTION: 0.2}\nDEVICE: cpu\n"
        f"DISTILLER: {{TYPE: KD, TEACHER: resnet8, TEACHER_CHECKPOINT: {tmp_path}/teacher.pth}}\n"
        f"TEACHER_CACHE: {{DIR: {tmp_path}/cache}}\n"
    )
    config = ("--cfg", tmp_path / "run.yaml")
    assert cache("prefill", *config, "--epochs", 2)[0] == 0
    (folder,) = (tmp_path / "cache").iterdir()
    _, listed, _ = cache("inspect", tmp_path / "cache")
    assert str(folder) in listed and f"of {60 * 81} rows" in listed
    assert ": 120 rows compared, in agreement with the teacher (" in cache("verify", *config)[1]  # two epochs of 60
    assert ": 5 rows compared, in agreement with the teacher (" in cache("verify", *config, "--rows", 5)[1]
    assert "intact rows" in cache("verify", folder)[1]
    with open(folder / "logits.bin", "r+b") as file:
        file.write(b"\xff\xff")
    code, _, error = cache("verify", folder)
    assert code == 2 and "1 of" in error and error.count("\n") == 1
    code, _, error = cache("delete", tmp_path)
    assert code == 2 and "not a teacher cache" in error
    assert cache("delete", folder)[0] == 0 and not os.listdir(tmp_path / "cache")


# --- folding ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, left", [("resnet20", 0), ("wrn_16_2", 7), ("ShuffleV2", 0), ("vgg8", 5)])
def test_a_folded_teacher_gives_the_same_logits(name, left):
    teacher = teacher_of(name=name)
    folded = fold_teacher(teacher, DISTILLERS["KD"])
    assert sum(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules()) == left
    image = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(folded(image).logits, teacher(image).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["FITNET", "FCFD"])
def test_methods_that_read_features_keep_their_teacher(method):
    teacher = teacher_of()
    assert fold_teacher(teacher, DISTILLERS[method]) is teacher


def test_a_run_with_a_folded_teacher_follows_the_plain_one(tmp_path):
    plain, folded = (run(tmp_path / str(fold), "KD", "DISTILLER.FOLD_TEACHER", fold, "SOLVER.EPOCHS", 1)
                     for fold in (False, True))
    for key, value in weights(plain).items():
        torch.testing.assert_close(weights(folded)[key], value, rtol=1e-2, atol=1e-3, msg=key)


def test_folder_of_a_run_is_ignored_by_git():
    assert "/teacher_cache/" in (REPOSITORY / ".gitignore").read_text()
