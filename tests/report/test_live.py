"""tools/watch.py: the page of a folder in which runs go on, with news, on this machine only, and nothing is written."""

import http.client
import importlib
import json
import os
import signal
import sys
import threading
import time

import pytest

from mdistiller.errors import UserError
from mdistiller.report.live import serve
from tests.forked import end, start
from tests.report.test_page import write_run, write_samples


@pytest.fixture
def ask(tmp_path):
    """ask(path, **headers) -> (status, text, tag) from a server that watches tmp_path."""
    write_run(tmp_path / "KD_s0", "KD", 0, 70.0)
    with serve(tmp_path, figures=tmp_path / "figures") as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

        def ask_for(path, method="GET", **headers):
            connection = http.client.HTTPConnection(*server.server_address)
            connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            return answer.status, answer.read().decode(), answer.headers["ETag"]

        yield ask_for
        server.shutdown()


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_page_is_updated_when_a_run_changes_and_nothing_is_written(ask, tmp_path):
    before = contents(tmp_path)
    status, whole, _ = ask("/")
    assert status == 200 and "connect-src &#39;self&#39;" in whole and "1 of 1 runs are done" in whole
    status, main, tag = ask("/main")
    assert status == 200 and "<html" not in main and "70.00" in main
    assert ask("/main", If_None_Match=tag) == (304, "", tag)
    assert contents(tmp_path) == before
    write_run(tmp_path / "KD_s1", "KD", 1, 71.0)
    status, main, newer = ask("/main", If_None_Match=tag)
    assert status == 200 and newer != tag and "70.50 ± 0.71" in main and "2 of 2 runs are done" in main


def test_other_requests_are_refused(ask):
    assert ask("/../etc/passwd")[0] == ask("/report.html")[0] == 404
    assert ask("/", "POST")[0] == ask("/", "DELETE")[0] == 501
    assert ask("/", Host="elsewhere.org:80")[0] == 403 and ask("/main", Host="localhost:99")[0] == 200


@pytest.mark.parametrize(("name", "content", "words"), [
    ("config.yaml", "DISTILLER: {TYPE: KD", "config.yaml"),  # as it is written, or on a full disk
    ("config.yaml", "", "config.yaml: DISTILLER.TYPE is missing"),
    ("summary.json", '{"status": "run', None),
    ("summary.json", '{"status": 3}', "summary.json: status: expected a text"),
    ("metrics.jsonl", "3\n", "metrics.jsonl, line 1: expected an object"),
    ("samples.json", '{"classes"', "samples.json: not what"),
    ("entropy_trace/epoch_1.npz", "PK", "epoch_1.npz: not a file of arrays"),
])
def test_half_written_folders_are_named_and_hide_no_other_run(ask, tmp_path, name, content, words):
    write_run(tmp_path / "EA-KD_s0", "EA-KD", 0, 72.0)
    write_samples(tmp_path / "EA-KD_s0", 72.0)
    (tmp_path / "EA-KD_s0" / name).write_text(content)
    status, main, _ = ask("/main")
    assert status == 200 and "70.00" in main
    assert ('<p class="problem">' in main) == (words is not None) and (words or "") in main


def test_planned_and_failed_runs_of_a_sweep_are_shown(ask, tmp_path):
    records = tmp_path / ".sweep" / "tried"
    records.mkdir(parents=True)
    (records / "plan.json").write_text(json.dumps({"runs": ["KD_s1", "DKD_s0"], "jobs": 2}))
    (records / "DKD_s0.failed").write_text(json.dumps({"error": "the loss <dkd> is NaN"}))
    (tmp_path / "tried").mkdir()
    write_run(tmp_path / "tried" / "KD_s1", "KD", 1, 70.0, status="running")
    _, main, _ = ask("/main")
    assert "1 of 3 runs are done" in main and "1 running" in main and "1 failed" in main
    assert "the loss &lt;dkd&gt; is NaN" in main


def test_a_port_in_use_and_a_missing_folder_are_user_errors(tmp_path):
    with serve(tmp_path) as server, pytest.raises(UserError, match=r"--port: \d+ is in use by another program"):
        serve(tmp_path, server.server_address[1])
    with pytest.raises(UserError, match="--port: expected 0 to 65535; found 70000"):
        serve(tmp_path, 70000)
    with pytest.raises(UserError, match="--runs: no such folder"):
        serve(tmp_path / "nowhere")


def test_ctrl_c_ends_the_command_in_one_line(tmp_path):
    def action():
        sys.argv = ["tools/watch.py", "--runs", str(tmp_path), "--port", "0"]
        importlib.import_module("tools.watch").cli()

    out, err = tmp_path / "out", tmp_path / "err"
    pid = start(action, out, err)
    while "http://127.0.0.1:" not in (out.read_text() if out.exists() else ""):
        time.sleep(0.02)
    os.kill(pid, signal.SIGINT)
    assert end(pid) == 130 and err.read_text() == "error: interrupted\n"
