"""Public teachers: installation from an archive or a local server, verification, the index and the command."""

import hashlib
import io
import json

import pytest
import torch

from mdistiller import files
from mdistiller.engine.teachers import archives as teachers
from mdistiller.errors import UserError
from mdistiller.models import build_model
from mdistiller.places import find_teacher
from tests.engine.support import REPOSITORY
from tests.engine.teachers.support import archive
from tests.forked import run_tool


def packed(network, **more):
    buffer = io.BytesIO()
    torch.save({"model": network.state_dict(), "epoch": 240, **more}, buffer)
    return buffer.getvalue()


def set_of(folder, content=b"", urls=(), sha256=None, archive_sha256=None):
    """An index with one set, `tiny`: resnet8 on digits, and resnet14 that no archive has."""
    entries = {
        "resnet8": {"file": "tiny/resnet8_vanilla/ckpt.pth", "top1": 50.0, "sha256": sha256},
        "resnet14": {"file": "tiny/resnet14_vanilla/ckpt.pth", "top1": 60.0},
    }
    entry = {"about": "two networks", "family": "cifar", "num_classes": 10, "teachers": entries}
    entry["archive"] = {"file": "tiny.tar", "urls": list(urls), "megabytes": 1, "sha256": archive_sha256}
    path = folder / "index.json"
    path.write_text(json.dumps({"digits": entry}))
    return path


@pytest.fixture
def resnet8():
    torch.manual_seed(0)
    return build_model("resnet8", 10)


@pytest.fixture
def tiny(tmp_path, resnet8):
    """(index file, archive, target folder)."""
    source = archive(tmp_path / "local.tar", [("./tiny/resnet8_vanilla/ckpt.pth", packed(resnet8))])
    return set_of(tmp_path), source, tmp_path / "checkpoints"


def fetched(index, folder, **options):
    return teachers.fetch(teachers.read_index(index)["digits"], folder, **options)


def test_teachers_of_a_local_archive_are_installed_where_runs_look_for_them(tiny, resnet8):
    index, source, folder = tiny
    (path,) = fetched(index, folder, archive=source)
    assert path == folder / "tiny/resnet8_vanilla/ckpt.pth" and source.is_file()
    assert [entry.name for entry in folder.iterdir()] == ["tiny"]
    state = torch.load(path, weights_only=True)["model"]
    assert all(torch.equal(value, state[key]) for key, value in resnet8.state_dict().items())


def test_an_archive_without_its_outer_folder_is_accepted(tiny, tmp_path, resnet8):
    index, _, folder = tiny
    source = archive(tmp_path / "flat.tar", [("resnet8_vanilla/ckpt.pth", packed(resnet8))])
    assert fetched(index, folder, archive=source)[0].is_file()


def test_downloaded_teachers_leave_no_archive_and_are_not_fetched_twice(server, tmp_path, resnet8):
    source = archive(tmp_path / "a.tar", [("tiny/resnet8_vanilla/ckpt.pth", packed(resnet8))])
    server.files["tiny.tar"], folder = source.read_bytes(), tmp_path / "checkpoints"
    digest = hashlib.sha256(packed(resnet8)).hexdigest()
    index = set_of(tmp_path, urls=[server.url("tiny.tar")], sha256=digest)
    content = json.loads(index.read_text())
    del content["digits"]["teachers"]["resnet14"]
    index.write_text(json.dumps(content))
    for _ in range(2):
        fetched(index, folder, allow_http=True)
    assert len(server.requests) == 1 and not (folder / "tiny.tar").exists()
    (folder / "tiny/resnet8_vanilla/ckpt.pth").write_bytes(b"damaged")
    fetched(index, folder, allow_http=True)
    assert len(server.requests) == 2 and (folder / "tiny/resnet8_vanilla/ckpt.pth").read_bytes() == packed(resnet8)


def test_a_teacher_with_another_hash_is_refused_and_a_bad_download_is_removed(server, tmp_path, resnet8):
    source = archive(tmp_path / "a.tar", [("tiny/resnet8_vanilla/ckpt.pth", packed(resnet8))])
    server.files["tiny.tar"], folder = source.read_bytes(), tmp_path / "checkpoints"
    index = set_of(tmp_path, urls=[server.url("tiny.tar")], sha256="1" * 64)
    for options in ({"archive": source}, {"allow_http": True}):
        with pytest.raises(UserError, match="SHA-256 of resnet8 is .*, expected 1111"):
            fetched(index, folder, **options)
        assert not any(folder.iterdir()) and source.is_file()
    with pytest.raises(UserError, match="its SHA-256 is not 2222"):
        fetched(set_of(tmp_path, archive_sha256="2" * 64), folder, archive=source)


def test_a_download_whose_process_was_killed_before_the_check_is_checked(server, tmp_path, resnet8):
    folder, index = tmp_path / "checkpoints", set_of(tmp_path, archive_sha256="2" * 64)
    folder.mkdir()
    archive(folder / "tiny.tar", [("tiny/resnet8_vanilla/ckpt.pth", packed(resnet8))])
    with pytest.raises(UserError, match="its SHA-256 is not 2222"):
        fetched(index, folder)
    assert not any(folder.iterdir())


@pytest.mark.parametrize("installed", [False, True])
def test_what_a_killed_process_left_is_removed(tmp_path, resnet8, installed):
    folder, index = tmp_path / "checkpoints", set_of(tmp_path)
    content = json.loads(index.read_text())
    del content["digits"]["teachers"]["resnet14"]
    index.write_text(json.dumps(content))
    (folder / ".unpackingabc" / "tiny").mkdir(parents=True)
    source = archive(folder / "tiny.tar", [("tiny/resnet8_vanilla/ckpt.pth", packed(resnet8))])
    if installed:
        fetched(index, folder, archive=source)
    fetched(index, folder)
    assert [entry.name for entry in folder.iterdir()] == ["tiny"]


def test_one_process_at_a_time_fetches_into_a_folder(tiny, monkeypatch):
    index, source, folder = tiny
    folder.mkdir()
    monkeypatch.setattr(files, "PATIENCE", 0.05)
    with files.alone_in(folder), pytest.raises(UserError, match="another process has held .*checkpoints for 0.05 sec"):
        fetched(index, folder, archive=source)
    assert not any(folder.iterdir())


class Evil:
    def __reduce__(self):
        return (eval, ("open('/tmp/mdistiller_evil', 'w')",))


@pytest.mark.parametrize("kind", ["other network", "code", "empty"])
def test_a_file_that_is_not_the_teacher_is_refused(tiny, tmp_path, resnet8, kind):
    index, _, folder = tiny
    content = {"other network": packed(build_model("resnet14", 10)), "code": packed(resnet8, opt=Evil()), "empty": b""}
    source = archive(tmp_path / "b.tar", [("tiny/resnet8_vanilla/ckpt.pth", content[kind])])
    with pytest.raises(UserError, match="does not fit the network" if kind == "other network" else "read safely"):
        fetched(index, folder, archive=source)
    assert not any(folder.iterdir())


def test_pickled_options_of_the_training_script_are_read_safely(tiny, tmp_path, resnet8):
    import argparse

    index, _, folder = tiny
    content = packed(resnet8, opt=argparse.Namespace(lr=0.05))
    assert fetched(index, folder, archive=archive(tmp_path / "b.tar", [("tiny/resnet8_vanilla/ckpt.pth", content)]))


def test_an_archive_of_something_else_is_named(tiny, tmp_path):
    index, _, folder = tiny
    with pytest.raises(UserError, match="holds none of the teachers of digits"):
        fetched(index, folder, archive=archive(tmp_path / "b.tar", [("holiday.jpg", b"x")]))
    with pytest.raises(UserError, match="--from: no such file"):
        fetched(index, folder, archive=tmp_path / "none.tar")


def test_the_check_tells_missing_damaged_and_good_apart_and_measures(tiny):
    index, source, folder = tiny
    wanted = teachers.read_index(index)["digits"]
    fetched(index, folder, archive=source)
    rows = {teacher.name: (found, bad) for teacher, found, bad in teachers.check(wanted, folder)}
    assert rows["resnet14"] == ("missing", False) and rows["resnet8"][0].startswith("good")
    measured = {teacher.name: (found, bad) for teacher, found, bad in teachers.check(wanted, folder, "data")}
    assert measured["resnet8"][1] and "published 50.00: they differ" in measured["resnet8"][0]  # it is not trained
    (folder / "tiny/resnet8_vanilla/ckpt.pth").write_bytes(b"damaged")
    rows = {teacher.name: (found, bad) for teacher, found, bad in teachers.check(wanted, folder)}
    assert rows["resnet8"][1] and "not a checkpoint" in rows["resnet8"][0]


# --- the index and the command --------------------------------------------------------------------------------------


def test_our_index_names_networks_there_are_and_files_that_runs_find(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    wanted = teachers.read_index()["cifar100"]
    assert all(url.startswith("https://") for url in wanted.urls)
    assert {teacher.name for teacher in wanted.teachers} == {
        "resnet56", "resnet110", "resnet32x4", "ResNet50", "wrn_40_2", "vgg13"
    }
    for teacher in wanted.teachers:
        build_model(teacher.name, wanted.num_classes, family=wanted.family)
        path = tmp_path / "checkpoints" / teacher.file
        path.parent.mkdir(parents=True)
        path.touch()
        assert find_teacher("cifar100", teacher.name, None) == path


@pytest.mark.parametrize("content", ["{", "[]", '{"a": {}}', '{"a": 1}'])
def test_a_file_that_is_not_an_index_is_refused(tmp_path, content):
    (tmp_path / "index.json").write_text(content)
    with pytest.raises(UserError, match="not an index of teachers"):
        teachers.read_index(tmp_path / "index.json")


@pytest.mark.parametrize("change, says", [
    ({"urls": [3]}, "urls"), ({"urls": [None]}, "urls"), ({"megabytes": "many"}, "megabytes"),
    ({"megabytes": None}, "megabytes"), ({"num_classes": 10**12}, "num_classes"),
    ({"num_classes": True}, "num_classes"),
    ({"family": [1]}, "family"), ({"family": "cats"}, "family"), ({"name": "evil.py:Net"}, "nearest"),
    ({"name": "timm:resnet18"}, "nearest"), ({"top1": float("nan")}, "top1"),
])
def test_reading_an_index_checks_its_metadata_and_imports_nothing(tmp_path, monkeypatch, change, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text("open('harmed', 'w')")
    fields = {"family": "cifar", "num_classes": 10, "urls": [], "megabytes": 1, "name": "resnet8", "top1": 1.0} | change
    entry = {
        "about": "a", "family": fields["family"], "num_classes": fields["num_classes"],
        "archive": {"file": "a.tar", "urls": fields["urls"], "megabytes": fields["megabytes"], "sha256": None},
        "teachers": {fields["name"]: {"file": "t/a.pth", "top1": fields["top1"]}},
    }
    (tmp_path / "index.json").write_text(json.dumps({"tiny": entry}))
    with pytest.raises(UserError, match=f"index.json: not an index of teachers .*{says}"):
        teachers.read_index(tmp_path / "index.json")
    assert not (tmp_path / "harmed").exists()


def test_an_index_nested_a_hundred_thousand_levels_deep_is_refused(tmp_path):
    (tmp_path / "index.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="not an index of teachers"):
        teachers.read_index(tmp_path / "index.json")


def test_an_index_cannot_name_places_outside_the_folder(tmp_path):
    path = set_of(tmp_path)
    path.write_text(path.read_text().replace("tiny/resnet8_vanilla", "../elsewhere"))
    with pytest.raises(UserError, match="leads outside"):
        teachers.read_index(path)


def test_the_command_fetches_lists_checks_and_explains(tiny, tmp_path):
    index, source, folder = tiny

    def tool(*words):
        done = run_tool("fetch_teachers", words, REPOSITORY)
        return done.returncode, done.stdout, done.stderr

    base = ["digits", "--index", index, "--to", folder]
    code, out, _ = tool(*base, "--from", source)
    assert code == 0 and "resnet8" in out and "has no resnet14" in out
    code, out, _ = tool("--list", "--index", index, "--to", folder)
    assert code == 0 and "resnet14     top-1 60.00  missing" in out
    code, out, _ = tool(*base, "--check")
    assert code == 0 and "missing" in out
    (folder / "tiny/resnet8_vanilla/ckpt.pth").write_bytes(b"damaged")
    wrong = [
        ([*base, "--check"], "bad: resnet8"),
        (["cifar10"], "nearest: cifar100"),
        (["CIFAR100"], "nearest: cifar100"),
        ([*base, "--from", index], "not a complete tar archive"),
        (["digits", "--index", tmp_path / "none.json"], "none.json"),
    ]
    for words, fragment in wrong:
        code, _, err = tool(*words)
        assert code == 2 and fragment in err and err.count("\n") == 1, (words, err)


def test_a_run_without_its_teacher_names_the_command(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="python tools/fetch_teachers.py cifar100"):
        find_teacher("cifar100", "wrn_40_2", None)
    with pytest.raises(UserError, match=r"train one \(configs/tiny_imagenet/vanilla/\)"):
        find_teacher("tiny_imagenet", "vgg13", None)
    with pytest.raises(UserError, match="bash scripts/train_teachers.sh cifar100") as said:
        find_teacher("cifar100", "wrn_28_4", None)
    assert "fetch" not in str(said.value)  # no public file
    with pytest.raises(UserError, match=r"imagefolder/timm-resnet18.pth.*train one \(DISTILLER.TYPE NONE\)"):
        find_teacher("imagefolder", "timm:resnet18", None)
