"""Files from elsewhere: downloads that continue where they stopped, archives that cannot write outside their folder."""

import http.client
import logging
import lzma
import os
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import urlparse

from mdistiller import files
from mdistiller.engine.log import progress
from mdistiller.errors import UserError

log = logging.getLogger("mdistiller")
ATTEMPTS = 4  # without a byte of progress between them, for each address
WAIT = 0.5  # seconds, doubled with every attempt
TIMEOUT = 30  # seconds
CHUNK = 1 << 20
MAX_BYTES = 4 << 30  # of a download, and of what an archive unpacks to
MAX_MEMBERS = 10_000
# Python before 3.11.4, Debian 12's for one, has no filters: `_check_member` has refused all else that "data" refuses.
SAFELY = {"filter": "data"} if hasattr(tarfile, "data_filter") else {"set_attrs": False}


class _Interrupted(OSError):
    """The connection ended before the file did."""


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    def __init__(self, allow_http):
        self.allow_http = allow_http

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        _check_scheme(newurl, self.allow_http)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_scheme(url, allow_http):
    allowed = ("https", "http") if allow_http else ("https",)
    try:
        scheme = urlparse(url).scheme
    except ValueError as error:
        raise UserError(f"{url}: no address: {error}") from None
    if scheme not in allowed:
        raise UserError(f"{url}: only {' and '.join(allowed)} addresses are fetched; --allow-http admits http")


def download(urls: Sequence[str], path: Path, sha256: str | None = None, allow_http: bool = False) -> None:
    """Fetch a file from the first of its addresses that gives it, whole and with the right SHA-256, to `path`.

    What has arrived is kept in `<path>.part`, where the next attempt, or the next call, goes on. Raises UserError
    naming every address and what went wrong there.
    """
    problems = []
    for url in urls:
        try:
            _fetch(url, path, allow_http)
            check_sha256(path, sha256)
            return
        except (OSError, http.client.HTTPException, UserError) as error:
            problems.append(str(error) if url in str(error) else f"{url}: {getattr(error, 'reason', None) or error}")
    raise UserError(f"{path.name} cannot be fetched ({'; '.join(problems)}); fetch it elsewhere and give it by --from")


def check_sha256(path: Path, sha256: str | None) -> None:
    """Raises UserError, and removes the file, when its SHA-256 is another one; None is not known and not checked."""
    if sha256 is not None and (found := files.sha256(path)) != sha256:
        path.unlink()
        raise UserError(f"{path.name} has the SHA-256 {found}, expected {sha256}: damaged, or not the file; removed")


def _fetch(url, path, allow_http):
    """One address to `path`, by as many requests as it takes."""
    _check_scheme(url, allow_http)
    opener = urllib.request.build_opener(_SafeRedirects(allow_http))
    part, failures = path.with_name(path.name + ".part"), 0
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        before = _length(part)
        try:
            _continue(opener, url, part)
            os.replace(part, path)
            return
        except urllib.error.HTTPError as error:
            if error.code == 416:  # nothing to continue with: we have it all, or it is not of this file
                if _range_of(error.headers.get("Content-Range", ""))[1] == before:
                    os.replace(part, path)
                    return
                part.unlink(missing_ok=True)
            elif error.code < 500 and error.code not in (408, 429):
                raise
            problem = error
        except (OSError, http.client.HTTPException) as error:
            problem = error
        failures = 0 if _length(part) > before else failures + 1
        if failures == ATTEMPTS:
            raise problem
        log.info("%s: %s; trying again", url, problem)
        time.sleep(WAIT * 2**failures if failures else 0)


def _length(path):
    return path.stat().st_size if path.is_file() else 0


def _continue(opener, url, part):
    """Append to `part` what is missing of the file. Raises _Interrupted when the connection ends too soon."""
    start = _length(part)
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    with opener.open(request, timeout=TIMEOUT) as answer:
        if answer.status == 206:
            first, total = _range_of(answer.headers.get("Content-Range", ""))
            if first != start:
                part.unlink()
                raise _Interrupted(f"the server continued at byte {first} instead of {start}")
        else:  # a server without ranges sends the whole file again
            start, length = 0, answer.headers.get("Content-Length")
            total = int(length) if length else None
        if total is not None and total > MAX_BYTES:
            raise UserError(f"{url}: {total} bytes are more than the {MAX_BYTES} that are fetched")
        with open(part, "ab" if start else "wb") as file, progress(
            total, part.name.removesuffix(".part"), initial=start, unit="B", unit_scale=True
        ) as bar:
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
                if file.tell() > MAX_BYTES:
                    raise UserError(f"{url}: more than the {MAX_BYTES} bytes that are fetched")
            file.flush()
            os.fsync(file.fileno())
    if total is not None and _length(part) < total:
        raise _Interrupted(f"the connection ended after {_length(part)} of {total} bytes")


def _range_of(header):
    """(first byte, total or None) of "bytes 100-199/200"."""
    span, _, total = header.removeprefix("bytes ").partition("/")
    first = span.partition("-")[0]
    return (int(first) if first.isdigit() else -1), (int(total) if total.isdigit() else None)


def extract(archive: Path, folder: Path, max_bytes: int = MAX_BYTES) -> None:
    """Unpack a tar archive into an empty folder: plain files and folders, nothing else.

    Raises UserError for a damaged archive, for names that lead outside, for links and devices, and for more than
    `max_bytes`; `folder` may then hold a part of it.
    """
    total = 0
    try:
        with tarfile.open(archive, "r:*") as tar:
            for count, member in enumerate(tar, start=1):
                _check_member(archive, member)
                total += member.size
                if total > max_bytes or count > MAX_MEMBERS:
                    raise UserError(f"{archive}: more than {max_bytes} bytes or {MAX_MEMBERS} files: refused")
                tar.extract(member, folder, **SAFELY)
    except getattr(tarfile, "FilterError", ()) as error:
        raise UserError(f"{archive}: refused: {error}") from None
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        raise UserError(f"{archive}: not a whole tar archive ({error}): fetch it again") from None


def _check_member(archive, member):
    name = PurePosixPath(member.name)
    if not (member.isreg() or member.isdir()):
        raise UserError(f"{archive}: {member.name} is neither a file nor a folder: refused")
    if name.is_absolute() or ".." in name.parts or "\\" in member.name:
        raise UserError(f"{archive}: {member.name} leads outside the folder: refused")
