"""The report page of a folder in which runs are going on, served on this machine (tools/watch.py). It only reads."""

import errno
import hashlib
import os
import sys
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from mdistiller.errors import UserError
from mdistiller.report.page import can_be_shown, values
from mdistiller.report.render import plotly_js, render
from mdistiller.runs.folders import check_folder, folders_below
from mdistiller.runs.records import RunRecord, archived_runs, by_path, read_run, run_folders

ADDRESS = "127.0.0.1"
OWN_NAMES = (ADDRESS, "localhost")  # of the Host header; a page of another site cannot read this one under its own name
UNSEEN = ".pth"  # files of this suffix change without a change of the page
REFRESH = 60  # seconds after which the time left of unfinished runs is told again


class Watched:
    """The runs below a folder. A run is read again when one of its files has changed."""

    def __init__(self, root: str | Path, figures: str | Path | None = None):
        self.root, self.figures = Path(root), figures
        self._known: dict[Path, tuple] = {}  # run folder -> (stamp of its files, record or None, problem)
        self._main = (None, "")  # tag, HTML
        self._lock = threading.Lock()

    def page(self) -> str:
        """The whole page."""
        with self._lock:
            return render("report.html", **self._values())

    def main(self, tag: str | None = None) -> tuple[str, str | None]:
        """(tag, HTML) of what changes on the page; the HTML is None if nothing has changed since `tag`."""
        with self._lock:
            now = self._tag()
            if now != self._main[0]:
                self._main = now, render("main.html", **self._values())
            return now, None if tag == now else self._main[1]

    def _values(self):
        runs, problems = self._runs()
        return values(self.root, runs, self.figures, live=True, problems=problems)

    def _tag(self):
        """A text that changes with the files below the folder, and every minute while a run is not finished."""
        places = [self.root, *([Path(self.figures)] if self.figures else [])]
        stamps = [stamp for place in places for stamp in _stamps(place)]
        busy = any(record is None or not record.done for _, record, _ in self._known.values())
        told = (stamps, int(time.time() // REFRESH) if busy else None)
        return f'"{hashlib.sha256(repr(told).encode()).hexdigest()[:32]}"'

    def _runs(self) -> tuple[list[RunRecord], list[str]]:
        """The runs that can be read, and a message for each that cannot."""
        problems: list[str] = []
        self._known = {folder: self._read(folder) for folder in run_folders(self.root)}
        found = [record for _, record, _ in self._known.values() if record is not None]
        runs = by_path([*found, *archived_runs(self.root, problems)])
        return runs, problems + [text for _, _, text in self._known.values() if text]

    def _read(self, folder):
        stamp = _stamps(folder)
        if folder in self._known and self._known[folder][0] == stamp:
            return self._known[folder]
        problems: list[str] = []
        try:
            record = read_run(folder)
            return (stamp, record, "") if can_be_shown(record, problems) else (stamp, None, problems[0])
        except UserError as error:
            return stamp, None, str(error)
        except OSError as error:  # a folder that is being moved or deleted
            return stamp, None, f"{folder}: cannot be read: {error.strerror}"


def _stamps(place: Path) -> list[tuple]:
    """(path, time of the last change, size) of the files below a folder, sorted; files that vanish are left out."""
    found = []
    for folder, names in folders_below(place):
        for name in names:
            path = os.path.join(folder, name)
            try:
                status = None if name.endswith(UNSEEN) else os.stat(path)
            except OSError:
                continue
            if status is not None:
                found.append((path, status.st_mtime_ns, status.st_size))
    return sorted(found)


class Handler(BaseHTTPRequestHandler):
    """Answers GET / with the page, and GET /main with what has changed since the tag in If-None-Match."""

    watched: Watched

    def do_GET(self):  # noqa: N802  (the name in http.server)
        if self.headers.get("Host", "").rpartition(":")[0] not in OWN_NAMES:
            return self._send(HTTPStatus.FORBIDDEN, "this server answers only on its own machine\n", "text/plain")
        try:
            if self.path == "/":
                return self._send(HTTPStatus.OK, self.watched.page())
            if self.path == "/main":
                tag, html = self.watched.main(self.headers.get("If-None-Match"))
                return self._send(HTTPStatus.NOT_MODIFIED if html is None else HTTPStatus.OK, html or "", tag=tag)
        except UserError as error:
            return self._send(HTTPStatus.SERVICE_UNAVAILABLE, f"{error}\n", "text/plain")
        return self._send(HTTPStatus.NOT_FOUND, "no such page\n", "text/plain")

    def _send(self, status, text, kind="text/html", tag=None):
        content = text.encode("utf-8", "backslashreplace")
        self.send_response(status)
        headers = {"Content-Type": f"{kind}; charset=utf-8", "Content-Length": len(content),
                   "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", **({"ETag": tag} if tag else {})}
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *words):
        """A request is no news."""


class Server(ThreadingHTTPServer):
    """Listens on this machine only."""

    daemon_threads = True

    def handle_error(self, request, client_address):
        """Stay silent when a browser has left; other errors are printed as usual."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def serve(root: str | Path, port: int = 0, figures: str | Path | None = None) -> Server:
    """A server of the page that listens already; `serve_forever` answers. Port 0 is any free one.

    Raises UserError for a folder that does not exist, a port that cannot be had, and a missing library.
    """
    check_folder(root)
    plotly_js()
    handler = type("HandlerOfFolder", (Handler,), {"watched": Watched(root, figures)})
    try:
        return Server((ADDRESS, port), handler)
    except OverflowError:
        raise UserError(f"--port: expected 0 to 65535; found {port}") from None
    except OSError as error:
        reason = "is in use by another program" if error.errno == errno.EADDRINUSE else f"is refused: {error.strerror}"
        raise UserError(f"--port: {port} {reason}; choose another one, or 0 for any") from None
