"""Stored logits of any view, by epoch and image: those of the live teacher, shared by whoever shares a data seed."""

import contextlib
import errno
import math
import os
import signal
import time
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mdistiller import files, precision
from mdistiller.data import build_data
from mdistiller.engine.cache import admin, logit_store, teacher_cache
from mdistiller.engine.cache.logit_cache import LogitCache
from mdistiller.engine.cache.replay import ReplayCache, count_records, part_of
from mdistiller.engine.cache.teacher_cache import announce, describe, folder_of, open_cache, why_live
from mdistiller.engine.periods import in_periods
from mdistiller.errors import RunError, UserError
from tests import forked
from tests.data.support import write_folders
from tests.engine.cache.test_logit_store import read_only
from tests.engine.cache.test_teacher_cache import metadata_with, teacher_of
from tests.engine.support import assert_same_weights, run, small_cfg, stopped_after

CPU = torch.device("cpu")
BOTH = ("image", "image_strong")
REPLAY = ("TEACHER_CACHE.ENABLED", True, "TEACHER_CACHE.KIND", "replay", "DATASET.SEED", 3, "SOLVER.EPOCHS", 2,
          "DATASET.TRAIN_FRACTION", 0.25, "SOLVER.BATCH_SIZE", 32)
FLOAT32 = ("TEACHER_CACHE.DTYPE", "float32")


def replay_cfg(folder, method="MLD", *opts):
    return small_cfg(folder, method, *REPLAY, "TEACHER_CACHE.DIR", str(folder / "cache"), *opts)


def cache_of(cfg, views=BOTH, teacher=None):
    data = in_periods(build_data(cfg, CPU), cfg.SOLVER)
    return open_cache(cfg, data, teacher or teacher_of(), None, CPU, views=views)


def disk_full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def attached(cache, epoch, **place):
    """The batches of an epoch with the logits of the cache."""
    return list(cache.attach(cache.data.train_batches(epoch, views=cache.views, **place), epoch, **place))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_folders(tmp_path_factory.mktemp("images"), per_class=(8, 2))


@pytest.mark.parametrize("dtype, unit, streamed", [
    ("float16", 2.0**-11, False), ("float32", 0.0, False), ("float16", 2.0**-11, True)])
def test_rows_are_the_live_teachers_for_weak_and_strong_views(tmp_path, root, dtype, unit, streamed):
    """In memory, and for random resized crops that are read from files; computed, then found."""
    opts = ("DATASET.TYPE", "imagefolder", "DATASET.ROOT", str(root), "DATASET.IMAGE_SIZE", 72,
            "DATASET.NUM_WORKERS", 0, "SOLVER.BATCH_SIZE", 10, "DATASET.TRAIN_FRACTION", 1.0) if streamed else ()
    cfg = replay_cfg(tmp_path, "MLD", "TEACHER_CACHE.DTYPE", dtype, *opts)
    number = build_data(cfg, CPU).info.num_classes
    teacher = teacher_of(num_classes=number)
    cache = cache_of(cfg, teacher=teacher)
    for _ in range(2):
        for batch in attached(cache, 2):
            for view, stored in zip(BOTH, batch["logits_teacher"], strict=True):
                with torch.no_grad():
                    live = teacher(batch[view]).logits
                assert ((stored - live).abs() <= unit * live.abs()).all()  # float32: to the bit, the last batch too
    total = cache.data.info.num_train
    assert (cache.lookups, cache.misses) == (4 * total, 2 * total)
    assert cache.check(40, 1e-5) == 40
    assert why_live(type("D", (), {"method": "X", "inputs": "logits", "teacher_mode": "eval"}), cache.data,
                    "replay") is None


def test_a_row_does_not_depend_on_ranks_resuming_or_what_was_stored(tmp_path):
    whole = cache_of(replay_cfg(tmp_path / "a", "MLD", *FLOAT32))
    rows = {int(i): row for batch in attached(whole, 1)
            for i, row in zip(batch["index"], batch["logits_teacher"][1], strict=True)}
    mixed = cache_of(replay_cfg(tmp_path / "b", "MLD", *FLOAT32))
    mixed.store.open("image_strong", 1).close()  # with the batch size of a run in one process
    for place in ({"start": 2}, {"rank": 1, "world_size": 3}, {"rank": 0, "world_size": 2}, {}):
        for batch in attached(mixed, 1, **place):
            for i, row in zip(batch["index"], batch["logits_teacher"][1], strict=True):
                assert torch.equal(row, rows[int(i)]), place
    assert mixed.misses == 2 * mixed.data.info.num_train


def test_a_run_equals_the_live_one_bit_for_bit_and_is_read_by_others_without_the_teacher(tmp_path, monkeypatch):
    """EA-MLD fills, is stopped within the second epoch and goes on; KD with another seed and student reads."""
    torch.save({"model": teacher_of().state_dict()}, tmp_path / "teacher.pth")
    common = (*REPLAY, "DISTILLER.TEACHER_CHECKPOINT", str(tmp_path / "teacher.pth"))
    opts = (*common, *FLOAT32, "TEACHER_CACHE.DIR", str(tmp_path / "cache"))
    live = run(tmp_path / "live", "EA-MLD", *common, "TEACHER_CACHE.ENABLED", False)
    with stopped_after(2, 1):
        run(tmp_path / "filled", "EA-MLD", *opts)
    assert_same_weights(run(tmp_path / "filled", "EA-MLD", *opts, resume=True), live)

    def never(*_):
        raise AssertionError("the teacher ran")

    monkeypatch.setattr(ReplayCache, "compute", never)
    monkeypatch.setattr(LogitCache, "check", lambda *_: 0)
    assert_same_weights(run(tmp_path / "read", "EA-MLD", *opts), live)
    run(tmp_path / "other", "KD", *opts, "DISTILLER.STUDENT", "resnet14", "EXPERIMENT.SEED", 9, "SOLVER.EPOCHS", 1)
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_two_processes_fill_a_store_together_that_another_seed_reads(tmp_path, capsys):
    torch.save({"model": teacher_of().state_dict()}, tmp_path / "teacher.pth")
    opts = (*REPLAY, "DISTILLER.TEACHER_CHECKPOINT", str(tmp_path / "teacher.pth"), "SOLVER.EPOCHS", 1,
            "TEACHER_CACHE.DIR", str(tmp_path / "cache"))

    def of_a_rank():
        run(tmp_path / "two", "KD", *opts)

    for done in forked.run_ranks(of_a_rank, 2):
        assert done.returncode == 0, done.stderr[-2000:]
    run(tmp_path / "one", "DKD", *opts, "EXPERIMENT.SEED", 9)
    said = capsys.readouterr().out
    assert "100.0 % of" in said and "rows were found, 0 computed" in said


def test_a_longer_run_fills_the_rest(tmp_path):
    cfg = replay_cfg(tmp_path, "MLD")
    total = cache_of(cfg).data.info.num_train
    assert admin_fill(cfg, 1) == 2 * total and admin_fill(cfg, 2) == 2 * total and admin_fill(cfg, 2) == 0


def no_room(monkeypatch):
    """No file can be written to the disk from now on."""
    monkeypatch.setattr(files, "_to_the_disk", disk_full)


@pytest.mark.parametrize("stop_writing", [read_only, no_room])
def test_epochs_that_a_store_lacks_are_computed_where_none_can_be_made(tmp_path, monkeypatch, caplog, stop_writing):
    """The file system is read-only, or its disk is full."""
    cfg = replay_cfg(tmp_path, "MLD")
    admin_fill(cfg, 1)
    stop_writing(monkeypatch)
    cache = cache_of(cfg)
    assert attached(cache, 1) and cache.misses == 0
    live = torch.cat([cache.logits_of(batch["image"]) for batch in cache.data.train_batches(2)])
    found = torch.cat([batch["logits_teacher"][0] for batch in attached(cache, 2)])
    torch.testing.assert_close(found, live, rtol=1e-3, atol=1e-2)
    assert cache.misses == cache.lookups / 2 and caplog.text.count("cannot be written to: rows that are missing") == 1


@pytest.mark.parametrize("kind", ["replay", "views"])
def test_filling_a_full_store_that_is_read_only_is_no_error(tmp_path, kind, monkeypatch):
    cfg = replay_cfg(tmp_path, "KD", "TEACHER_CACHE.KIND", kind, "DISTILLER.TEACHER_CHECKPOINT", "random",
                     "DATASET.TRAIN_FRACTION", 0.1)
    assert admin.prefill(cfg, 1).misses
    opened = admin.open_for(cfg)
    assert len(list(opened.attach(opened.data.train_batches(1), 1))) and opened.misses == 0
    read_only(monkeypatch)
    assert admin.prefill(cfg, 1).misses == 0
    with pytest.raises(RunError, match="cannot grow, see above"):
        admin.prefill(cfg, 2)


def admin_fill(cfg, epochs):
    cache = cache_of(cfg)
    assert sum(cache.fill(range(1, epochs + 1))) == cache.num_rows(epochs)
    return cache.misses


@pytest.mark.parametrize("change", [
    ("DATASET.SEED", 4), ("DATASET.AUGMENTATION", "rotate_flip"), ("TEACHER_CACHE.TOPK", 3),
    ("TEACHER_CACHE.DTYPE", "float32"), ("TEACHER_CACHE.KIND", "views"), ("DISTILLER.TEACHER", "resnet14"),
    ("DATASET.SEED", None),
])
def test_another_data_seed_augmentation_teacher_or_form_is_another_store(tmp_path, change):
    assert store_of(tmp_path, *change) != store_of(tmp_path)
    assert metadata_with(tmp_path, *REPLAY, image_size=64) != metadata_with(tmp_path, *REPLAY)


def test_methods_students_seeds_and_lengths_share_a_store(tmp_path):
    opts = ("DISTILLER.TYPE", "EA-KD", "DISTILLER.STUDENT", "resnet14", "EXPERIMENT.SEED", 9, "SOLVER.EPOCHS", 100,
            "SOLVER.BATCH_SIZE", 32)
    assert store_of(tmp_path, *opts) == store_of(tmp_path)


def store_of(folder, *opts):
    cfg = replay_cfg(folder, "MLD", *opts)
    return folder_of(folder, describe(cfg, build_data(cfg, CPU), None, "ab", CPU)["key"])


def test_the_largest_logits_alone_are_the_same_computed_and_found(tmp_path):
    cfg = replay_cfg(tmp_path, "KD", "TEACHER_CACHE.TOPK", 3)
    cache = cache_of(cfg, ("image",))
    computed, found = ([batch["logits_teacher"] for batch in attached(cache, 1)] for _ in range(2))
    assert all(map(torch.equal, computed, found)) and cache.misses == len(torch.cat(found))
    with torch.no_grad():
        live = torch.cat([cache.logits_of(batch["image"]) for batch in cache.data.train_batches(1)])
    stored = torch.cat(found)
    assert torch.equal(stored.argmax(dim=1), live.argmax(dim=1))
    assert (stored.exp().sum(dim=1) / live.exp().sum(dim=1) - 1).abs().max() < 2e-3  # no mass is lost
    assert cache.check(64, 1e-5) == 64 and "KL" in cache.error(64)


def test_the_error_of_stored_rows_by_hand():
    """Two classes; of two rows, stored as undecided, one is so and the other is certain of the second class."""
    cache = LogitCache(None, SimpleNamespace(device=CPU), None, SimpleNamespace(unpack=lambda rows: rows))
    stored, live = torch.zeros(2, 2), torch.tensor([[0.0, 0.0], [0.0, 1e5]])
    cache.samples = lambda count: [(stored[:1], live[:1]), (stored[1:], live[1:])]
    apart = f"{math.log(2) / 2:.2g} nats"
    assert cache.error(2) == "the same first class in 50.00 %" + "".join(
        f"; at temperature {temperature}: KL {apart}, entropies apart by {apart}" for temperature in (1, 3, 4))


def test_a_killed_run_leaves_whole_rows_and_the_next_one_fills_the_rest(tmp_path):
    cfg = replay_cfg(tmp_path, "MLD", *FLOAT32)
    folder = cache_of(cfg).store.folder
    process = forked.start(partial(admin_fill, cfg, 2), tmp_path / "out", tmp_path / "err")
    while not count_records(part_of(folder, "image", 1)):
        time.sleep(0.0005)
    os.kill(process, signal.SIGKILL)
    assert forked.end(process) == -signal.SIGKILL
    after, untouched = cache_of(cfg), cache_of(replay_cfg(tmp_path / "other", "MLD", *FLOAT32))
    for epoch in (1, 2):
        for one, other in zip(attached(after, epoch), attached(untouched, epoch), strict=True):
            assert torch.equal(one["logits_teacher"], other["logits_teacher"])
    assert after.misses < untouched.misses and after.store.damaged() == 0


def test_a_row_of_another_image_is_found_by_the_check(tmp_path):
    cfg = replay_cfg(tmp_path, "MLD")
    cache = cache_of(cfg)
    with contextlib.closing(cache.store.open("image", 1)) as store:
        store.write(np.array([5]), np.full((1, 10), 0.25, np.float16))
    with pytest.raises(UserError, match=r"1 of 1 stored rows differ .*; delete it: python tools/cache.py delete"):
        cache_of(cfg)


def test_periods_read_the_epochs_of_the_data(tmp_path):
    cfg = replay_cfg(tmp_path, "MLD", "SOLVER.MAX_ITER", 4, "SOLVER.EVAL_PERIOD", 2)  # an epoch has three batches
    cache = cache_of(cfg)
    first, second = attached(cache, 1), attached(cache, 2)
    plain = cache_of(replay_cfg(tmp_path, "MLD"))
    for one, other in zip([*first, *second], [*attached(plain, 1), *attached(plain, 2)], strict=False):
        assert torch.equal(one["index"], other["index"])
        assert torch.equal(one["logits_teacher"], other["logits_teacher"])
    assert sorted(path.name for path in cache.store.parts()) == [
        "image_0001", "image_0002", "image_strong_0001", "image_strong_0002"]


def test_sizes_are_announced_for_imagenet(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(teacher_cache.log, "propagate", True)
    caplog.set_level("INFO", logger="mdistiller")
    monkeypatch.setattr(teacher_cache.shutil, "disk_usage", lambda _: type("Disk", (), {"free": 30e9}))
    total = 1281167 * 100
    metadata = {"dtype": "float16", "key": {}}
    with pytest.raises(UserError, match=r"may grow by 257.26 GB, 30.00 GB are free.*TOPK stores the largest logits"):
        announce(tmp_path, metadata | {"num_classes": 1000}, 0, total)
    announce(tmp_path, metadata | {"num_classes": 2 * 50 + 1}, 0, total)
    assert "this run may add 26.90 GB" in caplog.text
    announce(tmp_path, metadata | {"num_classes": 1000}, total - 1, total)  # all but one row are there
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    announce(tmp_path, metadata | {"num_classes": 1000}, 0, total)  # which is only read and cannot grow


def test_the_commands_fill_list_verify_and_delete(tmp_path, monkeypatch):
    cfg = replay_cfg(tmp_path, "MLD")
    with pytest.raises(UserError, match=f"TEACHER_CACHE.DIR: no cache of this config in .*; it would be {tmp_path}"):
        admin.verify_against_teacher(cfg, 100)
    assert not (tmp_path / "cache").exists()
    with monkeypatch.context() as full:
        full.setattr(logit_store, "_write_all", disk_full)
        with pytest.raises(RunError, match="cannot grow, see above; 0 rows are stored"):
            admin.prefill(cfg)
    with pytest.raises(UserError, match="holds no rows yet"):
        admin.verify_against_teacher(cfg, 100)
    cache = admin.prefill(cfg)
    total = cache.data.info.num_train
    text = admin.inspect(tmp_path / "cache")
    assert f"{4 * total} of {4 * total} rows (100.0 %)" in text and "data seed 3" in text
    assert "2 epochs of image, 2 epochs of image_strong" in text
    (tmp_path / "cache" / "notes.txt").write_text("no cache")
    assert admin.inspect(tmp_path / "cache") == text
    (tmp_path / "cache" / "notes.txt").unlink()
    checked = []
    with monkeypatch.context() as watched:
        watched.setattr(ReplayCache, "check", lambda self, count, rounding: checked.append(count))
        assert admin.verify_against_teacher(cfg, 10**6)[1] == 4 * total
    folder, rows, error = admin.verify_against_teacher(cfg, 100)
    assert (checked, rows) == ([10**6], 100) and "the same first class in" in error
    assert admin.verify(folder) == 4 * total
    with open(folder / "image_0002" / "logits.bin", "r+b") as file:
        file.write(b"\xff\xff")
    with pytest.raises(UserError, match="1 of .* rows are damaged"):
        admin.verify(folder)
    admin.delete(folder)
    assert not list((tmp_path / "cache").iterdir())


def test_a_cache_is_filled_in_the_precision_that_auto_means_here(tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "_cpuinfo", lambda: "")  # a processor without AMX
    cache = admin.open_for(replay_cfg(tmp_path, "KD", "SOLVER.AMP", "auto", "DISTILLER.TEACHER_AMP", "same"), 1)
    assert cache.store.metadata["key"]["amp"] == "none"


@pytest.mark.parametrize(("kind", "images"), [("replay", 11), ("views", 32)])
def test_a_pass_has_the_images_of_one_of_the_processes_of_a_batch_or_a_whole_batch(tmp_path, monkeypatch, kind, images):
    monkeypatch.setattr(teacher_cache.distributed, "world_size", lambda: 3)
    cfg = replay_cfg(tmp_path, "KD", "TEACHER_CACHE.KIND", kind)
    assert describe(cfg, build_data(cfg, CPU), None, "ab", CPU)["chunk"] == images
