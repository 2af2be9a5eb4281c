"""The file of logits: reading, writing, crashes and damage."""

import errno
import json
import os
import signal
import time
from functools import partial

import numpy as np
import pytest

from mdistiller import files
from mdistiller.engine.cache import admin, logit_store
from mdistiller.engine.cache.logit_store import LogitStore
from mdistiller.errors import RunError, UserError
from tests import forked

ENTRIES, CLASSES = 2000, 7


def open_store(folder, dtype="float16", **changes):
    metadata = {"num_entries": ENTRIES, "num_records": ENTRIES, "num_classes": CLASSES, "dtype": dtype,
                "key": {"t": "a"}}
    return LogitStore(folder, metadata | changes)


def rows_of(entries, dtype="float16"):
    """Rows that say which entry they belong to."""
    return (np.asarray(entries)[:, None] / 8 - np.arange(CLASSES)).astype(dtype)


def assert_holds(store, entries):
    values, found = store.read(np.asarray(entries))
    assert found.all()
    np.testing.assert_array_equal(values, rows_of(entries, store.value))


@pytest.mark.parametrize("dtype, size", [("float16", 2 * CLASSES + 4), ("float32", 4 * CLASSES + 4)])
def test_written_rows_are_read_by_all_processes(tmp_path, dtype, size):
    one, other = open_store(tmp_path, dtype), open_store(tmp_path, dtype)
    entries = np.array([5, 0, ENTRIES - 1])
    values, found = other.read(entries)
    assert not found.any() and not values.any()
    one.write(entries, rows_of(entries, dtype))
    for store in (one, other, open_store(tmp_path, dtype)):
        assert_holds(store, entries)
        assert list(store.held()) == [0, 5, ENTRIES - 1] and store.damaged() == 0
    assert (tmp_path / "logits.bin").stat().st_size == ENTRIES * size
    assert (tmp_path / "logits.bin").stat().st_blocks * 512 < ENTRIES * size  # sparse


def test_an_entry_is_stored_once(tmp_path):
    one, other = open_store(tmp_path), open_store(tmp_path)
    one.write(np.array([1, 2]), rows_of([1, 2]))
    other.write(np.array([2, 3]), rows_of([2, 3]))
    assert_holds(one, [1, 2, 3])
    assert one.count == 3


class Killed(BaseException):
    pass


@pytest.mark.parametrize("writes, part", [(0, 0.0), (0, 0.5), (0, 1.0), (1, 0.1), (1, 0.5)])
def test_a_store_killed_while_appending_contains_only_whole_rows(tmp_path, monkeypatch, writes, part):
    """After `writes` complete writes (values, then numbers), the next one is cut after `part` of its bytes."""
    store, original, calls = open_store(tmp_path), logit_store._write_all, []
    store.write(np.arange(10), rows_of(np.arange(10)))

    def dying(file, array, offset):
        calls.append(offset)
        if len(calls) > writes:
            data = np.ascontiguousarray(array).tobytes()
            original(file, np.frombuffer(data[: int(part * len(data))], np.uint8), offset)
            raise Killed
        original(file, array, offset)

    monkeypatch.setattr(logit_store, "_write_all", dying)
    with pytest.raises(Killed):
        store.write(np.arange(100, 110), rows_of(np.arange(100, 110)))
    monkeypatch.setattr(logit_store, "_write_all", original)
    del store
    store = open_store(tmp_path)
    assert_holds(store, np.arange(10))
    whole = store.held()[10:]
    assert_holds(store, whole)
    assert set(whole) <= set(range(100, 110)) and store.damaged() == 0
    store.write(np.arange(100, 120), rows_of(np.arange(100, 120)))
    assert_holds(open_store(tmp_path), [*range(10), *range(100, 120)])


def fill(folder, seed):
    store, order = open_store(folder), np.random.default_rng(seed).permutation(ENTRIES)
    for first in range(0, ENTRIES, 5):
        store.write(order[first : first + 5], rows_of(order[first : first + 5]))
        time.sleep(0.001)


def test_two_processes_fill_a_store_at_once(tmp_path):
    for done in forked.run_together([partial(fill, tmp_path, seed) for seed in (1, 2)]):
        assert done.returncode == 0, done.stderr
    store = open_store(tmp_path)
    assert_holds(store, np.arange(ENTRIES))
    assert store.count == ENTRIES  # nothing twice


def test_a_killed_process_leaves_whole_rows_and_no_lock(tmp_path):
    folder = tmp_path / "store"
    process = forked.start(partial(fill, folder, 1), tmp_path / "out", tmp_path / "err")
    entries = folder / "entries.bin"
    while not (entries.exists() and entries.stat().st_size):
        time.sleep(0.0005)
    os.kill(process, signal.SIGKILL)
    assert forked.end(process) == -signal.SIGKILL
    store = open_store(folder)
    held = store.held()
    assert 0 < len(held) < ENTRIES
    assert_holds(store, held)
    store.write(np.arange(ENTRIES), rows_of(np.arange(ENTRIES)))  # the lock died with its holder
    assert_holds(store, np.arange(ENTRIES))


def test_rows_whose_values_never_reached_the_disk_are_missing_and_stored_anew(tmp_path):
    """As after a power failure: the numbers were written, the values are zeros or another row's."""
    store = open_store(tmp_path)
    store.write(np.arange(4), rows_of(np.arange(4)))
    with open(tmp_path / "logits.bin", "r+b") as file:
        record = file.read(store.bytes)
        file.seek(store.bytes)
        file.write(bytes(store.bytes) + record)
    store = open_store(tmp_path)
    assert store.read(np.arange(4))[1].tolist() == [True, False, False, True]
    store.write(np.arange(4), rows_of(np.arange(4)))
    assert_holds(open_store(tmp_path), np.arange(4))


def test_any_flipped_bit_is_noticed(tmp_path):
    store = open_store(tmp_path)
    store.write(np.array([3]), rows_of([3]))
    sound = (tmp_path / "logits.bin").read_bytes()
    for bit in range(8 * store.bytes):
        data = bytearray(sound)
        data[bit // 8] ^= 1 << bit % 8
        (tmp_path / "logits.bin").write_bytes(data)
        assert open_store(tmp_path).damaged() == 1, bit


def test_a_full_disk_is_reported_once_and_does_not_stop_the_run(tmp_path, monkeypatch):
    store = open_store(tmp_path)
    store.write(np.array([1]), rows_of([1]))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(logit_store.os, "pwrite", full)
    said = []
    monkeypatch.setattr(logit_store.log, "warning", lambda text, *words: said.append(text % words))
    for entry in (2, 3):
        store.write(np.array([entry]), rows_of([entry]))
    assert len(said) == 1 and "cannot grow (No space left on device)" in said[0]
    assert store.read(np.array([1, 2]))[1].tolist() == [True, False]


def test_a_store_of_something_else_or_of_another_size_is_refused_with_the_command_that_deletes_it(tmp_path):
    open_store(tmp_path)
    with pytest.raises(UserError, match=f"another t; delete it: python tools/cache.py delete {tmp_path}"):
        open_store(tmp_path, key={"t": "b"})
    (tmp_path / "logits.bin").write_bytes(b"short")
    with pytest.raises(UserError, match="logits.bin: 5 bytes, expected 36000; delete it"):
        open_store(tmp_path)


def test_a_folder_that_cannot_be_used_is_named_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="TEACHER_CACHE.DIR: .*file/store cannot be used"):
        open_store(tmp_path / "file" / "store")


def read_only(monkeypatch, number=errno.EROFS):
    """No file of a store may be written from now on."""
    def refuses(path, mode):
        if mode != "rb":
            raise OSError(number, os.strerror(number))
        return open(path, mode)

    monkeypatch.setattr(logit_store, "open", refuses, raising=False)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_store_that_others_have_filled_is_read_where_it_may_not_be_changed(tmp_path, number, monkeypatch, caplog):
    open_store(tmp_path).write(np.array([3]), rows_of([3]))
    read_only(monkeypatch, number)
    store = open_store(tmp_path)
    store.write(np.array([4]), rows_of([4]))
    assert_holds(store, [3])
    assert not store.writable and list(store.held()) == [3]
    assert "cannot be written to: rows that are missing" in caplog.text
    store.close()
    with pytest.raises((UserError, RunError), match="cannot be used"):  # there is none, and none can be made
        open_store(tmp_path / "new")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_disk_without_room_for_a_store_is_no_mistake_of_the_user(tmp_path, monkeypatch, number):
    def fails(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(logit_store.Path, "mkdir", fails)
    with pytest.raises(RunError, match=f"TEACHER_CACHE.DIR: .* cannot be used: .*{os.strerror(number)}"):
        open_store(tmp_path)


def test_an_unfinished_store_is_made_again(tmp_path):
    open_store(tmp_path)
    (tmp_path / "metadata.json").unlink()
    (tmp_path / "logits.bin").write_bytes(b"half")
    assert not len(open_store(tmp_path).held())


def test_a_store_whose_metadata_has_its_former_name_is_read(tmp_path):
    store = open_store(tmp_path)
    (tmp_path / "metadata.json").rename(tmp_path / "facts.json")
    assert open_store(tmp_path).metadata == store.metadata
    assert not (tmp_path / "metadata.json").exists()


@pytest.mark.parametrize("change", [
    {"num_entries": 10**12}, {"num_classes": 10**12}, {"num_records": True}, {"dtype": ["float16"]}, {"chunk": 0},
    {"chunk": -1}, {"chunk": "x"}, {"chunk": None}, {"chunk": 10**12},
])
def test_impossible_metadata_is_reported_in_one_line(tmp_path, change):
    open_store(tmp_path, chunk=4)
    metadata = logit_store.read_metadata(tmp_path)
    (tmp_path / "metadata.json").write_text(json.dumps(metadata | change))
    with pytest.raises(UserError, match=f"metadata.json: {next(iter(change))}: damaged"):
        open_store(tmp_path, chunk=4)


def test_a_store_in_the_format_of_a_later_version_is_named_and_neither_read_nor_made_anew(tmp_path):
    open_store(tmp_path).write(np.arange(3), rows_of(range(3)))
    later = json.loads((tmp_path / "metadata.json").read_text()) | {"format": 2}
    (tmp_path / "metadata.json").write_text(json.dumps(later))
    before = (tmp_path / "entries.bin").read_bytes()
    for use in (open_store, admin.inspect, admin.verify, admin.delete):
        with pytest.raises(UserError, match="cache of format 2, of a later version"):
            use(tmp_path)
    assert before and (tmp_path / "entries.bin").read_bytes() == before


def test_metadata_nested_a_hundred_thousand_levels_deep_is_refused(tmp_path):
    (tmp_path / "metadata.json").write_text("[" * 100_000)
    assert logit_store.read_metadata(tmp_path) is None


def test_a_file_truncated_during_a_run_costs_only_rows(tmp_path):
    store, entries = open_store(tmp_path), np.arange(100)
    store.write(entries, rows_of(entries))
    os.truncate(tmp_path / "logits.bin", 50 * store.bytes)
    values, found = store.read(entries)  # through a memory map: SIGBUS
    assert found.sum() == 50 and not values[50:].any()
    store.write(entries, rows_of(entries))
    assert_holds(store, entries)


def test_waiting_for_a_lock_is_reported_and_limited(tmp_path, monkeypatch, caplog):
    store, holder = open_store(tmp_path), open_store(tmp_path)
    monkeypatch.setattr(files, "PATIENCE", 0.2)
    monkeypatch.setattr(files, "SAY_AFTER", 0.05)
    with holder._locked():
        store.write(np.arange(3), rows_of(range(3)))
        assert not store.writable and "waiting for" in caplog.text and "another process has held" in caplog.text
        with pytest.raises(UserError, match="another process has held .*lock for 0.2 seconds; continue or end it"):
            open_store(tmp_path)
    assert open_store(tmp_path).count == 0


def test_without_locks_two_processes_may_cost_each_other_rows_and_never_mix_them(tmp_path, monkeypatch, caplog):
    def refuses(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(logit_store.fcntl, "flock", refuses)
    monkeypatch.setattr(files, "WITHOUT_LOCKS", set())
    one, other = open_store(tmp_path), open_store(tmp_path)
    with monkeypatch.context() as at_once:
        at_once.setattr(other, "catch_up", lambda: None)  # it has looked before the first one appends
        one.write(np.arange(4), rows_of(range(4)))
        other.write(np.arange(2, 6), rows_of(range(2, 6)))
    assert not one.read(np.arange(4))[1].any()
    assert_holds(open_store(tmp_path), range(2, 6))
    one.write(np.arange(4), rows_of(range(4)))
    assert_holds(open_store(tmp_path), range(6))
    assert caplog.text.count("this file system has no locks") == 1


def test_a_cache_in_the_working_folder_can_be_deleted_as_dot(tmp_path, monkeypatch):
    open_store(tmp_path / "store")
    monkeypatch.chdir(tmp_path / "store")
    admin.delete(".")
    assert not any(tmp_path.iterdir())


def test_a_cache_whose_deletion_was_stopped_is_deleted_by_the_same_command(tmp_path, monkeypatch):
    open_store(tmp_path / "store")

    def stopped(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as at_first, pytest.raises(KeyboardInterrupt):
        at_first.setattr(admin.shutil, "rmtree", stopped)
        admin.delete(tmp_path / "store")
    assert not (tmp_path / "store").exists() and any(tmp_path.iterdir())
    admin.delete(tmp_path / "store")
    assert not any(tmp_path.iterdir())
    with pytest.raises(UserError, match="not a teacher cache"):
        admin.delete(tmp_path / "store")
