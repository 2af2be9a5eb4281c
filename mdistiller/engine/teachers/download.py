"""Downloads that resume after an interruption, with limits on size and time."""

import contextlib
import http.client
import logging
import os
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlparse

from mdistiller import files
from mdistiller.engine.log import progress
from mdistiller.errors import DISK_FAILS, UserError, cannot_write

log = logging.getLogger("mdistiller")
ATTEMPTS = 4  # consecutive attempts without progress, for each address
WAIT = 0.5  # seconds before the next attempt, doubled with every attempt
TIMEOUT = 30  # seconds
CHUNK = 1 << 20
MAX_BYTES = 4 << 30
MAX_DIGITS = 20
PROGRESS = 1 << 16  # bytes that a request, and every PERIOD seconds, must bring to count as progress
PERIOD = 60
MAX_SECONDS = 12 * 3600  # for each address


class _Interrupted(OSError):
    """The connection ended before the file did."""


class _InTime(http.client.HTTPConnection):
    """A connection that is closed if the headers of the response do not arrive within PERIOD seconds."""

    def getresponse(self):
        cut = threading.Event()

        def end():
            cut.set()
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(PERIOD, end)
        timer.daemon = True
        timer.start()
        try:
            answer = super().getresponse()
        finally:
            timer.cancel()
        if cut.is_set():  # truncated headers look complete
            raise _Interrupted(f"the server sent no complete headers in {PERIOD} seconds")
        return answer


class _SafelyInTime(_InTime, http.client.HTTPSConnection):
    pass


class _Http(urllib.request.HTTPHandler):
    def http_open(self, req):
        return self.do_open(_InTime, req)


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, req):
        return self.do_open(_SafelyInTime, req, context=self._context)


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
        raise UserError(f"{url}: not a valid address: {error}") from None
    if scheme not in allowed:
        raise UserError(f"{url}: only {' and '.join(allowed)} addresses are allowed; --allow-http also allows http")


def download(urls: Sequence[str], path: Path, sha256: str | None = None, allow_http: bool = False) -> None:
    """Download a file to `path` from the first address that sends it completely and with the right SHA-256.

    Received bytes are kept in `<path>.part`; the next attempt or the next call continues there. Raises UserError with
    every address and its problem.
    """
    problems = []
    for url in urls:
        try:
            _fetch(url, path, allow_http)
            check_sha256(path, sha256)
            return
        except (OSError, http.client.HTTPException, ValueError) as error:  # UserError is one
            problems.append(str(error) if url in str(error) else f"{url}: {getattr(error, 'reason', None) or error}")
    raise UserError(f"{path.name} cannot be downloaded ({'; '.join(problems)}); get it elsewhere and pass it by --from")


def check_sha256(path: Path, sha256: str | None) -> None:
    """Raise UserError, and remove the file, when its SHA-256 is wrong; None means that it is unknown."""
    if sha256 is not None and (found := files.sha256(path)) != sha256:
        path.unlink()
        raise UserError(f"{path.name} has the SHA-256 {found}, expected {sha256}: damaged or another file; removed")


def _fetch(url, path, allow_http):
    """Download one address to `path`, with as many requests as needed while they make progress."""
    _check_scheme(url, allow_http)
    opener = urllib.request.build_opener(_SafeRedirects(allow_http), _Http, _Https)
    part, failures, end = path.with_name(path.name + ".part"), 0, time.monotonic() + MAX_SECONDS
    path.parent.mkdir(parents=True, exist_ok=True)
    reached = before = _length(part)
    while True:
        try:
            _continue(opener, url, part)
            os.replace(part, path)
            return
        except urllib.error.HTTPError as error:
            if error.code == 416:  # nothing left to send: the part is complete, or belongs to another file
                if _range_of(error.headers.get("Content-Range", ""))[1] == before:
                    os.replace(part, path)
                    return
                part.unlink(missing_ok=True)
            elif error.code < 500 and error.code not in (408, 429):
                raise
            problem = error
        except UserError:
            raise
        except ValueError as error:  # an invalid header, chunk size or redirect address
            raise UserError(f"{url}: invalid response: {error}") from None
        except (OSError, http.client.HTTPException) as error:
            if getattr(error, "errno", None) in DISK_FAILS:
                raise cannot_write(part, error) from None
            problem = error
        before = _length(part)
        failures = 0 if before >= reached + PROGRESS else failures + 1
        reached = max(reached, before)
        if failures == ATTEMPTS or time.monotonic() > end:
            raise problem
        log.info("%s: %s; trying again", url, problem)
        time.sleep(WAIT * 2**failures if failures else 0)


def _length(path):
    return path.stat().st_size if path.is_file() else 0


def _continue(opener, url, part):
    """Append the missing bytes to `part`. Raises _Interrupted when the connection ends too early."""
    start = _length(part)
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    with opener.open(request, timeout=TIMEOUT) as answer:
        if answer.status == 206:
            first, total = _range_of(answer.headers.get("Content-Range", ""))
            if first != start:
                part.unlink(missing_ok=True)
                raise _Interrupted(f"the server continued at byte {first} instead of {start}")
        else:  # a server without ranges sends the whole file again
            start, total = 0, _whole(answer.headers.get("Content-Length") or "")
        if total is not None and total > MAX_BYTES:
            raise UserError(f"{url}: {total} bytes are more than the allowed {MAX_BYTES}")
        with open(part, "ab" if start else "wb") as file, progress(
            total, part.name.removesuffix(".part"), initial=start, unit="B", unit_scale=True
        ) as bar:
            for chunk in _steadily(answer):
                file.write(chunk)
                bar.update(len(chunk))
                if file.tell() > MAX_BYTES:
                    part.unlink()  # the next call would continue it
                    raise UserError(f"{url}: more than the allowed {MAX_BYTES} bytes")
            file.flush()
            os.fsync(file.fileno())
    if total is not None and _length(part) < total:
        raise _Interrupted(f"the connection ended after {_length(part)} of {total} bytes")


def _steadily(answer):
    """Yield the bytes of a response as they arrive.

    Raises _Interrupted when fewer than PROGRESS bytes arrive in PERIOD seconds.
    """
    since, got = time.monotonic(), 0
    while chunk := answer.read1(CHUNK):
        yield chunk
        got += len(chunk)
        if time.monotonic() - since > PERIOD:
            if got < PROGRESS:
                raise _Interrupted(f"the server sends too slowly: {got} bytes in {PERIOD} seconds")
            since, got = time.monotonic(), 0


def _range_of(header):
    """(first byte, total or None) of a header such as "bytes 100-199/200"."""
    span, _, total = header.removeprefix("bytes ").partition("/")
    first = span.partition("-")[0]
    start = _whole(first)
    return (-1 if start is None else start), _whole(total)


def _whole(text):
    """The number in a header, None for anything but a limited number of ASCII digits."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < MAX_DIGITS else None
