"""A local HTTP server for tests of downloads."""

import http.server
import threading

import pytest

from mdistiller.engine.teachers import download as downloads


class Server(http.server.ThreadingHTTPServer):
    """Serves `files` (path -> bytes) and records the requests. `cut`: bytes after which each answer ends."""

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
