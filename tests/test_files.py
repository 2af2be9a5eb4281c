"""Files: what is written whole or not at all, what is read, and who holds a lock."""

import errno
import fcntl
import os

import pytest

from mdistiller import files
from mdistiller.errors import UserError


@pytest.mark.parametrize(("number", "ours"), [
    (errno.EAGAIN, False), (errno.EACCES, False), (errno.ENOLCK, True), (errno.EBADF, True), (errno.ENOTSUP, True)])
def test_a_lock_is_held_by_another_process_or_unknown_to_the_file_system(number, ours, tmp_path, monkeypatch):
    def refused(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refused)
    assert files.taken(0, tmp_path) is ours


def test_a_file_system_that_fails_at_a_lock_is_no_held_lock(tmp_path, monkeypatch):
    def failing(*args):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", failing)
    with pytest.raises(OSError, match="Input/output error"):
        files.taken(0, tmp_path)


def test_a_table_whose_last_line_is_cut_off_is_refused(tmp_path):
    rows = [{"run": "a,b", "top1": 12.5}, {"run": "c"}]
    text = files.csv_text(["run", "top1"], rows)
    assert text == 'run,top1\n"a,b",12.5\nc,\n'
    (tmp_path / "a.csv").write_text(text)
    assert list(files.csv_rows(tmp_path / "a.csv")) == [{"run": "a,b", "top1": "12.5"}, {"run": "c", "top1": ""}]
    (tmp_path / "a.csv").write_text(text[:-1])
    with pytest.raises(ValueError, match="its last line is cut off"):
        files.csv_rows(tmp_path / "a.csv")


def test_only_files_of_a_killed_process_are_removed(tmp_path):
    kept = [".metrics.csv", ".settings.original", "a.csv.12345678", ".a.b.1234567"]
    for name in (*kept, ".latest.pth.ab12_xyz", ".run.json.00000000"):
        (tmp_path / name).touch()
    files.remove_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


def test_what_is_no_file_is_told_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        files.open_plain(tmp_path / "pipe")
    with pytest.raises(IsADirectoryError):
        files.open_plain(tmp_path)
    assert files.read_plain(os.devnull) == ""
    with pytest.raises(UserError, match="pipe: cannot be written"):
        files.lock(tmp_path / "pipe")
    with pytest.raises(UserError, match="cannot be written: Is a directory"):
        files.write_text(tmp_path, "text")
