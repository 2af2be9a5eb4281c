"""Downloads and archives: broken connections, wrong hashes, archives with unsafe members."""

import contextlib
import gzip
import hashlib
import lzma
import socket
import tarfile
import threading
import zlib

import pytest

from mdistiller.engine.teachers import download as downloads
from mdistiller.engine.teachers.download import download
from mdistiller.engine.teachers.unpack import extract
from mdistiller.errors import RunError, UserError
from tests.engine.teachers.support import archive

CONTENT = bytes(range(256)) * 40


# --- downloads ------------------------------------------------------------------------------------------------------


def test_a_file_is_downloaded(server, tmp_path):
    server.files["a.tar"] = CONTENT
    download([server.url("a.tar")], tmp_path / "a.tar", hashlib.sha256(CONTENT).hexdigest(), allow_http=True)
    assert (tmp_path / "a.tar").read_bytes() == CONTENT and [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def test_a_connection_that_breaks_off_is_continued_where_it_stopped(server, tmp_path):
    server.files["a.tar"], server.cut = CONTENT, 3000
    download([server.url("a.tar")], tmp_path / "a.tar", allow_http=True)
    assert (tmp_path / "a.tar").read_bytes() == CONTENT
    assert [asked for _, asked in server.requests] == [None, "bytes=3000-", "bytes=6000-", "bytes=9000-"]


@pytest.mark.parametrize("ranges, requests", [(True, ["bytes=4000-"]), (False, ["bytes=4000-"])])
def test_a_partial_download_is_continued_or_fetched_again(server, tmp_path, ranges, requests):
    server.files["a.tar"], server.ranges = CONTENT, ranges
    (tmp_path / "a.tar.part").write_bytes(CONTENT[:4000])
    download([server.url("a.tar")], tmp_path / "a.tar", allow_http=True)
    assert (tmp_path / "a.tar").read_bytes() == CONTENT and [asked for _, asked in server.requests] == requests


@pytest.mark.parametrize("left", [CONTENT, CONTENT + b"of another file"])
def test_a_complete_partial_file_is_used_and_a_longer_one_is_not(server, tmp_path, left):
    server.files["a.tar"] = CONTENT
    (tmp_path / "a.tar.part").write_bytes(left)
    download([server.url("a.tar")], tmp_path / "a.tar", allow_http=True)
    assert (tmp_path / "a.tar").read_bytes() == CONTENT and len(server.requests) == (1 if left == CONTENT else 2)


def test_a_server_without_answer_is_given_up_and_the_partial_file_is_kept(server, tmp_path):
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
def test_invalid_addresses_end_in_one_line(server, tmp_path, url):
    with pytest.raises(UserError, match="a.tar cannot be downloaded"):
        download([url], tmp_path / "a.tar", allow_http=True)


def test_a_server_without_progress_is_given_up(server, tmp_path):
    server.files["a.tar"], server.cut = CONTENT, 1  # one byte per connection
    with pytest.raises(UserError, match="after 4 of 10240 bytes"):
        download([server.url("a.tar")], tmp_path / "a.tar", allow_http=True)
    server.requests.clear()
    server.raw["b.tar"] = b"HTTP/1.0 206 Partial Content\r\nContent-Range: bytes 50-99/100\r\n\r\nabc"
    (tmp_path / "b.tar.part").write_bytes(b"0123456789")
    with pytest.raises(UserError, match="continued at byte 50 instead of"):
        download([server.url("b.tar")], tmp_path / "b.tar", allow_http=True)
    assert len(server.requests) == downloads.ATTEMPTS


def test_a_very_slow_server_is_interrupted(monkeypatch):
    monkeypatch.setattr(downloads.time, "monotonic", iter(range(0, 1000, 30)).__next__)  # one byte per half a minute
    answer = type("Answer", (), {"read1": lambda self, size: b"x"})()
    with pytest.raises(OSError, match="too slowly: 3 bytes in 60 seconds"):
        for _ in downloads._steadily(answer):
            pass


def test_very_slow_headers_are_interrupted(tmp_path, monkeypatch):
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
        with pytest.raises(UserError, match="the server sent no complete headers in 0.05 seconds"):
            download([f"http://127.0.0.1:{listening.getsockname()[1]}/a.tar"], tmp_path / "a.tar", allow_http=True)
        thread.join()
    assert not (tmp_path / "a.tar").exists()


def test_nothing_of_an_endless_answer_is_kept(server, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "MAX_BYTES", 1000)
    server.raw["a.tar"] = b"HTTP/1.0 200 OK\r\n\r\n" + bytes(5000)
    with pytest.raises(UserError, match="more than the allowed 1000 bytes"):
        download([server.url("a.tar")], tmp_path / "a.tar", allow_http=True)
    assert not any(tmp_path.iterdir())


# --- archives -------------------------------------------------------------------------------------------------------


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
def test_an_archive_with_more_than_files_and_folders_is_refused(tmp_path, member, reason):
    source, folder = archive(tmp_path / "bad.tar", [("first", b"1"), member]), tmp_path / "inside"
    folder.mkdir()
    with pytest.raises(UserError, match=reason):
        extract(source, folder)
    assert {path.name for path in folder.iterdir()} <= {"first"} and not (tmp_path / "outside").exists()


def test_an_archive_that_expands_too_much_is_refused_before_it_is_written(tmp_path):
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
def test_invalid_headers_end_in_one_line(tmp_path, headers):
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


def test_a_full_disk_is_not_reported_as_a_damaged_archive(tmp_path, monkeypatch):
    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "extract", full)
    with pytest.raises(RunError, match="No space left on device"):
        extract(archive(tmp_path / "a.tar", [("file", b"x")]), tmp_path)


@pytest.mark.parametrize("content", [b"", b"no archive", None])
def test_a_file_that_is_not_an_archive_or_truncated_is_reported(tmp_path, content):
    source = tmp_path / "a.tar"
    if content is None:
        content = archive(source, [("file", bytes(20000))]).read_bytes()[:5000]
    source.write_bytes(content)
    with pytest.raises(UserError, match="not a complete tar archive"):
        extract(source, tmp_path)
