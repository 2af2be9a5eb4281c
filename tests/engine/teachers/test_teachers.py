"""Public teachers from a server of our own: broken connections, wrong hashes, archives that leave their folder."""

import contextlib
import gzip
import hashlib
import http.server
import io
import json
import lzma
import runpy
import socket
import sys
import tarfile
import threading
import zlib

import pytest
import torch

from mdistiller.engine.checkpoints import find_teacher
from mdistiller.engine.teachers import archives as teachers
from mdistiller.engine.teachers import download as downloads
from mdistiller.engine.teachers.download import download
from mdistiller.engine.teachers.unpack import extract
from mdistiller.errors import RunError, UserError
from mdistiller.models import build_model
from tests.engine.support import REPOSITORY


class Server(http.server.ThreadingHTTPServer):
    """Serves `files` (path -> bytes) and notes the requests. `cut`: bytes after which each answer breaks off."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.requests, self.cut, self.ranges, self.redirects = {}, [], None, True, {}
        self.raw = {}  # path -> bytes of a whole answer, headers included

    def url(self, name):
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server, name, asked = self.server, self.path[1:], self.headers.get("Range")
        server.requests.append((name, asked))
        if name in server.redirects:
            self.send_response(302)
            self.send_header("Location", server.redirects[name])
            return self.end_headers()
        if name in server.raw:
            return self.wfile.write(server.raw[name])
        if name not in server.files:
            return self.send_error(404)
        content = server.files[name]
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and server.ranges else 0
        if start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            return self.end_headers()
        self.send_response(206 if asked and server.ranges else 200)
        if asked and server.ranges:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:] if server.cut is None else content[start : start + server.cut])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(downloads, "WAIT", 0)
    one = Server()
    thread = threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield one
    one.shutdown()
    thread.join()
    one.server_close()


CONTENT = bytes(range(256)) * 40


# --- downloads ------------------------------------------------------------------------------------------------------


def test_a_file_arrives_whole(server, tmp_path):
    server.files["a.tar"] = CONTENT
    download([server.url("a.tar")], tmp_path / "a.tar", hashlib.sha256(CONTENT).hexdigest(), allow_http=True)
    assert (tmp_path / "a.tar").read_bytes() == CONTENT and [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def test_a_connection_that_breaks_off_is_continued_where_it_stopped(server, tmp_path):
    server.files["a.tar"], server.cut = CONTENT, 3000
    download([server.url("a.tar")], tmp_path / "a.tar", allow_http=True)
    assert (tmp_path / "a.tar").read_bytes() == CONTENT
    assert [asked for _, asked in server.requests] == [None, "bytes=3000-", "bytes=6000-", "bytes=9000-"]


@pytest.mark.parametrize("ranges, requests", [(True, ["bytes=4000-"]), (False, ["bytes=4000-"])])
def test_what_an_earlier_call_left_is_continued_or_fetched_anew(server, tmp_path, ranges, requests):
    server.files["a.tar"], server.ranges = CONTENT, ranges
    (tmp_path / "a.tar.part").write_bytes(CONTENT[:4000])
    download([server.url("a.tar")], tmp_path / "a.tar", allow_http=True)
    assert (tmp_path / "a.tar").read_bytes() == CONTENT and [asked for _, asked in server.requests] == requests


@pytest.mark.parametrize("left", [CONTENT, CONTENT + b"of another file"])
def test_a_finished_part_is_taken_and_a_longer_one_is_not(server, tmp_path, left):
    server.files["a.tar"] = CONTENT
    (tmp_path / "a.tar.part").write_bytes(left)
    download([server.url("a.tar")], tmp_path / "a.tar", allow_http=True)
    assert (tmp_path / "a.tar").read_bytes() == CONTENT and len(server.requests) == (1 if left == CONTENT else 2)


def test_a_server_that_gives_nothing_is_left_and_what_came_is_kept(server, tmp_path):
    server.files["a.tar"], server.cut = CONTENT, 0
    (tmp_path / "a.tar.part").write_bytes(CONTENT[:100])
    with pytest.raises(UserError, match="a.tar cannot be downloaded .*after 100 of 10240 bytes.*--from"):
        download([server.url("a.tar")], tmp_path / "a.tar", allow_http=True)
    assert len(server.requests) == downloads.ATTEMPTS and (tmp_path / "a.tar.part").read_bytes() == CONTENT[:100]


def test_mirrors_are_tried_in_turn_when_one_is_gone_or_has_another_file(server, tmp_path):
    server.files |= {"wrong.tar": CONTENT[::-1], "right.tar": CONTENT}
    urls = [server.url(f"{name}.tar") for name in ("gone", "wrong", "right")]
    download(urls, tmp_path / "a.tar", hashlib.sha256(CONTENT).hexdigest(), allow_http=True)
    assert (tmp_path / "a.tar").read_bytes() == CONTENT
    assert [name for name, _ in server.requests] == ["gone.tar", "wrong.tar", "right.tar"]


def test_a_wrong_hash_leaves_nothing_behind(server, tmp_path):
    server.files["a.tar"] = CONTENT
    with pytest.raises(UserError, match="SHA-256 .*expected 0000"):
        download([server.url("a.tar")], tmp_path / "a.tar", "0" * 64, allow_http=True)
    assert not any(tmp_path.iterdir())


def test_only_https_is_fetched_unless_http_is_allowed_and_never_a_local_file(server, tmp_path):
    server.files["a.tar"] = CONTENT
    with pytest.raises(UserError, match="only https .*--allow-http"):
        download([server.url("a.tar")], tmp_path / "a.tar")
    assert not server.requests
    (tmp_path / "secret").write_text("secret")
    server.redirects["b.tar"] = f"file://{tmp_path}/secret"
    for url in (f"file://{tmp_path}/secret", server.url("b.tar")):
        with pytest.raises(UserError, match="only https and http|not allowed"):
            download([url], tmp_path / "a.tar", allow_http=True)
    assert not (tmp_path / "a.tar").exists()


def test_more_than_the_limit_is_not_fetched(server, tmp_path, monkeypatch):
    server.files["a.tar"] = CONTENT
    monkeypatch.setattr(downloads, "MAX_BYTES", 1000)
    with pytest.raises(UserError, match="10240 bytes are more than the allowed 1000"):
        download([server.url("a.tar")], tmp_path / "a.tar", allow_http=True)
    assert not (tmp_path / "a.tar.part").exists()


@pytest.mark.parametrize("answer", [
    b"200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nabc\r\n", b"302 Found\r\nLocation: http://[/\r\n\r\n",
    b"302 Found\r\nLocation: http://" + b"a" * 70 + b"/\r\n\r\n", b"302 Found\r\nLocation: http://\xe9/\r\n\r\n",
    b"206 Partial Content\r\nContent-Range: bytes \xb2-5/\xb2\r\n\r\nabc",
])
def test_answers_that_cannot_be_read_end_in_one_line(server, tmp_path, answer):
    server.raw["a.tar"] = b"HTTP/1.0 " + answer
    with pytest.raises(UserError, match="a.tar cannot be downloaded"):
        download([server.url("a.tar")], tmp_path / "a.tar", allow_http=True)
    assert not (tmp_path / "a.tar").exists()


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/\xe9", f"http://{'a' * 70}/a.tar", "http://[/"])
def test_addresses_that_cannot_be_asked_end_in_one_line(server, tmp_path, url):
    with pytest.raises(UserError, match="a.tar cannot be downloaded"):
        download([url], tmp_path / "a.tar", allow_http=True)


def test_a_server_that_brings_nothing_forward_is_left(server, tmp_path):
    server.files["a.tar"], server.cut = CONTENT, 1  # a byte a connection
    with pytest.raises(UserError, match="after 4 of 10240 bytes"):
        download([server.url("a.tar")], tmp_path / "a.tar", allow_http=True)
    server.requests.clear()
    server.raw["b.tar"] = b"HTTP/1.0 206 Partial Content\r\nContent-Range: bytes 50-99/100\r\n\r\nabc"
    (tmp_path / "b.tar.part").write_bytes(b"0123456789")
    with pytest.raises(UserError, match="continued at byte 50 instead of"):
        download([server.url("b.tar")], tmp_path / "b.tar", allow_http=True)
    assert len(server.requests) == downloads.ATTEMPTS


def test_a_server_that_sends_a_byte_now_and_then_is_interrupted(monkeypatch):
    monkeypatch.setattr(downloads.time, "monotonic", iter(range(0, 1000, 30)).__next__)  # half a minute a byte
    answer = type("Answer", (), {"read1": lambda self, size: b"x"})()
    with pytest.raises(OSError, match="too slowly: 3 bytes in 60 seconds"):
        for _ in downloads._steadily(answer):
            pass


def test_headers_that_come_a_byte_now_and_then_are_cut_off(tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "PERIOD", 0.05)
    monkeypatch.setattr(downloads, "ATTEMPTS", 1)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        def drip():
            connection, _ = listening.accept()
            with connection, contextlib.suppress(OSError):
                connection.sendall(b"HTTP/1.0 200 OK\r\nX-Slow: ")
                while connection.recv(1 << 16):  # until the other side gives up, no more headers
                    pass

        thread = threading.Thread(target=drip)
        thread.start()
        with pytest.raises(UserError, match="the server sent no whole headers in 0.05 seconds"):
            download([f"http://127.0.0.1:{listening.getsockname()[1]}/a.tar"], tmp_path / "a.tar", allow_http=True)
        thread.join()
    assert not (tmp_path / "a.tar").exists()


def test_of_an_endless_answer_nothing_is_kept(server, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "MAX_BYTES", 1000)
    server.raw["a.tar"] = b"HTTP/1.0 200 OK\r\n\r\n" + bytes(5000)
    with pytest.raises(UserError, match="more than the allowed 1000 bytes"):
        download([server.url("a.tar")], tmp_path / "a.tar", allow_http=True)
    assert not any(tmp_path.iterdir())


# --- archives -------------------------------------------------------------------------------------------------------


def archive(path, members, mode="w"):
    """A tar file of (name, bytes) pairs or TarInfo objects."""
    with tarfile.open(path, mode) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            name, content = member
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    "member, reason",
    [
        (("../outside", b"x"), "leads outside"),
        (("inner/../../outside", b"x"), "leads outside"),
        (("/tmp/mdistiller_outside", b"x"), "leads outside"),
        (special("link", tarfile.SYMTYPE, "/etc/passwd"), "neither a file nor a folder"),
        (special("link", tarfile.LNKTYPE, "first"), "neither a file nor a folder"),
        (special("pipe", tarfile.FIFOTYPE), "neither a file nor a folder"),
        (special("disk", tarfile.BLKTYPE), "neither a file nor a folder"),
    ],
)
def test_an_archive_that_tries_more_than_files_and_folders_is_refused(tmp_path, member, reason):
    source, folder = archive(tmp_path / "bad.tar", [("first", b"1"), member]), tmp_path / "inside"
    folder.mkdir()
    with pytest.raises(UserError, match=reason):
        extract(source, folder)
    assert {path.name for path in folder.iterdir()} <= {"first"} and not (tmp_path / "outside").exists()


def test_a_bomb_is_refused_before_it_is_written(tmp_path):
    source = archive(tmp_path / "bomb.tar.gz", [("zeros", bytes(10**7))], "w:gz")
    folder = tmp_path / "inside"
    folder.mkdir()
    with pytest.raises(UserError, match="more than 1000 bytes"):
        extract(source, folder, max_bytes=1000)
    assert source.stat().st_size < 10**5 and not any(folder.iterdir())


def with_header(place, headers):
    with tarfile.open(place, "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("x")
        info.pax_headers = headers
        tar.addfile(info)
    return place


def test_times_in_an_archive_have_no_effect(tmp_path):
    for value in ("nan", "1e400", "1e30"):
        extract(with_header(tmp_path / "a.tar", {"mtime": value}), tmp_path)
    assert (tmp_path / "x").read_bytes() == b""


@pytest.mark.parametrize("headers", [
    {"path": "a\0b"}, {"GNU.sparse.map": "a,b"}, {"GNU.sparse.size": "abc"}, {"path": "d/" * 1500 + "x"},
    {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"},
])
def test_headers_that_make_no_sense_end_in_one_line(tmp_path, headers):
    (tmp_path / "inside").mkdir()
    with pytest.raises(UserError):
        extract(with_header(tmp_path / "a.tar", headers), tmp_path / "inside")
    assert not any((tmp_path / "inside").iterdir())


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_of_gigabytes_is_refused_before_it_is_read(tmp_path, kind):
    header = tarfile.TarInfo("x")
    header.type, header.size = kind, 3 << 30
    with gzip.open(tmp_path / "a.tar", "wb", 1) as file:
        file.write(header.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 20))
    with pytest.raises(UserError, match="a header of more than 1048576 bytes"):
        extract(tmp_path / "a.tar", tmp_path)


def test_an_xz_that_asks_for_a_gigabyte_of_memory_is_refused(tmp_path):
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 4096}]
    content = bytearray(lzma.compress(bytes(1024), filters=filters))
    content[16] = 36  # the dictionary: 1 GiB
    content[20:24] = zlib.crc32(content[12:20]).to_bytes(4, "little")
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(UserError, match="emory"):
        extract(tmp_path / "a.tar", tmp_path)


def test_a_full_disk_is_not_the_archive_s_fault(tmp_path, monkeypatch):
    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "extract", full)
    with pytest.raises(RunError, match="No space left on device"):
        extract(archive(tmp_path / "a.tar", [("file", b"x")]), tmp_path)


@pytest.mark.parametrize("content", [b"", b"no archive", None])
def test_what_is_no_archive_or_not_whole_is_said_to_be_so(tmp_path, content):
    source = tmp_path / "a.tar"
    if content is None:
        content = archive(source, [("file", bytes(20000))]).read_bytes()[:5000]
    source.write_bytes(content)
    with pytest.raises(UserError, match="not a complete tar archive"):
        extract(source, tmp_path)


# --- teachers -------------------------------------------------------------------------------------------------------


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


def test_teachers_of_a_local_archive_land_where_runs_look_for_them(tiny, resnet8):
    index, source, folder = tiny
    (path,) = fetched(index, folder, archive=source)
    assert path == folder / "tiny/resnet8_vanilla/ckpt.pth" and source.is_file()
    assert [entry.name for entry in folder.iterdir()] == ["tiny"]
    state = torch.load(path, weights_only=True)["model"]
    assert all(torch.equal(value, state[key]) for key, value in resnet8.state_dict().items())


def test_an_archive_packed_without_its_outer_folder_will_do(tiny, tmp_path, resnet8):
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


def test_options_of_the_training_script_are_read_safely(tiny, tmp_path, resnet8):
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
def test_another_file_is_no_index(tmp_path, content):
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
def test_an_index_is_data_its_facts_are_checked_and_it_imports_nothing(tmp_path, monkeypatch, change, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text("open('harmed', 'w')")
    facts = {"family": "cifar", "num_classes": 10, "urls": [], "megabytes": 1, "name": "resnet8", "top1": 1.0} | change
    entry = {
        "about": "a", "family": facts["family"], "num_classes": facts["num_classes"],
        "archive": {"file": "a.tar", "urls": facts["urls"], "megabytes": facts["megabytes"], "sha256": None},
        "teachers": {facts["name"]: {"file": "t/a.pth", "top1": facts["top1"]}},
    }
    (tmp_path / "index.json").write_text(json.dumps({"tiny": entry}))
    with pytest.raises(UserError, match=f"index.json: not an index of teachers .*{says}"):
        teachers.read_index(tmp_path / "index.json")
    assert not (tmp_path / "harmed").exists()


def test_an_index_of_a_hundred_thousand_levels_is_no_index(tmp_path):
    (tmp_path / "index.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="not an index of teachers"):
        teachers.read_index(tmp_path / "index.json")


def test_an_index_cannot_name_places_outside_the_folder(tmp_path):
    path = set_of(tmp_path)
    path.write_text(path.read_text().replace("tiny/resnet8_vanilla", "../elsewhere"))
    with pytest.raises(UserError, match="leads outside"):
        teachers.read_index(path)


def test_the_command_fetches_lists_checks_and_explains(tiny, tmp_path, monkeypatch, capsys):
    index, source, folder = tiny

    def tool(*words):
        monkeypatch.setattr(sys, "argv", ["fetch_teachers.py", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(REPOSITORY / "tools" / "fetch_teachers.py"), run_name="__main__")
        return ended.value.code, *capsys.readouterr()

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
    with pytest.raises(UserError, match=r"imagefolder/timm-resnet18.pth.*train one \(DISTILLER.TYPE NONE\)"):
        find_teacher("imagefolder", "timm:resnet18", None)
