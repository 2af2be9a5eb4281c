"""Walking through folders of runs."""

import errno
import os

from mdistiller.runs.folders import folders_below


def test_a_folder_that_cannot_be_read_is_left_out_with_one_warning(tmp_path, monkeypatch, caplog):
    for name in ("a", "private", "z"):
        (tmp_path / name).mkdir()
    scan = os.scandir

    def refuse(path):
        if os.path.basename(path) == "private":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    for _ in range(2):
        assert [folder for folder, _ in folders_below(tmp_path)] == [tmp_path, tmp_path / "a", tmp_path / "z"]
    assert caplog.messages == [f"{tmp_path / 'private'}: left out: Permission denied"]
