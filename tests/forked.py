"""Commands and ranks in processes forked from pytest, which saves seconds of imports."""

import contextlib
import importlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

SECONDS = 300  # after which a process counts as hanging


def start(action: Callable[[], int | None], out: Path, err: Path) -> int:
    """Call `action` in a forked process with its output in files; returns the process id."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.alarm(SECONDS)
            signal.signal(signal.SIGINT, signal.default_int_handler)  # workers of pytest ignore it
            with open(out, "w") as to, open(err, "w") as to_err:
                os.dup2(to.fileno(), 1)
                os.dup2(to_err.fileno(), 2)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", errors="backslashreplace") for number in (1, 2))
            code = action() or 0
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            code = 1
            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)
    return pid


def end(pid: int) -> int:
    """Wait for a process and return its exit code, negative for a signal. If its action raised an exception, the
    code is 1 and stderr contains the traceback."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run_tool(tool: str, words, cwd: Path, before: Callable[[], object] = lambda: None) -> subprocess.CompletedProcess:
    """tools/<tool>.py, as typed in the folder `cwd`. `before` is called there first."""

    def action():
        os.chdir(cwd)
        sys.argv = [f"tools/{tool}.py", *map(str, words)]
        before()
        importlib.import_module(f"tools.{tool}").cli()

    (done,) = run_together([action])
    return done


def run_ranks(action: Callable[[], int | None], number: int) -> list[subprocess.CompletedProcess]:
    """Run `action` in `number` processes, each with the environment that torchrun sets for a rank."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]

    def rank_of(rank):
        def of_rank():
            os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": str(number),
                           "LOCAL_WORLD_SIZE": str(number), "RANK": str(rank), "LOCAL_RANK": str(rank)}
            return action()

        return of_rank

    return run_together([rank_of(rank) for rank in range(number)])


def run_together(actions) -> list[subprocess.CompletedProcess]:
    """Run all actions at the same time, each in its own process."""
    with tempfile.TemporaryDirectory() as folder:
        files = [(Path(folder, f"{number}.out"), Path(folder, f"{number}.err")) for number in range(len(actions))]
        running = [start(action, *names) for action, names in zip(actions, files, strict=True)]
        codes = [end(pid) for pid in running]
        texts = [[name.read_text(errors="replace") for name in names] for names in files]
    return [subprocess.CompletedProcess([], code, *text) for code, text in zip(codes, texts, strict=True)]
