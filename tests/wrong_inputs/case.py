"""One wrong input, and running a command on it."""

import contextlib
import importlib
import io
import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

SAVED = "../saved"  # from the folder of a case: runs, checkpoints, caches and measurements that nothing may change
RUN = f"{SAVED}/runs/distill/ea"
STUDENT = f"{RUN}/student_best.pth"
BASE = f"{SAVED}/base.yaml"  # a run of a second on digits that writes below out/
SECONDS = 60  # after which a command counts as hanging


@dataclass(frozen=True)
class Case:
    """Words of tools/<tool>.py, typed in a folder that holds `files`: text, bytes, or a function that is given the path
    to make and the folder of saved things. `says` must be in the error."""

    name: str
    tool: str
    words: tuple[str, ...]
    says: str
    files: Mapping[str, str | bytes | Callable[[Path, Path], object]] = field(default_factory=dict)

    def prepare(self, folder: Path, saved: Path) -> None:
        folder.mkdir(parents=True)
        for name, content in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if callable(content):
                content(path, saved)
            else:
                path.write_bytes(content.encode() if isinstance(content, str) else content)


def train(name: str, *opts, says: str, files=None, resume: bool = False) -> Case:
    """tools/train.py with overrides of the small run."""
    flags = ("--resume",) if resume else ()
    return Case(f"train: {name}", "train", ("--cfg", BASE, *flags, *map(str, opts)), says, files or {})


def config(name: str, text: str | bytes, says: str, **others) -> Case:
    """tools/train.py on a config file a.yaml of this text."""
    files = {"a.yaml": text, **{f"{other}.yaml": content for other, content in others.items()}}
    return Case(f"config: {name}", "train", ("--cfg", "a.yaml"), says, files)


def typed(tool: str, line: str, says: str, files=None, name: str | None = None) -> Case:
    """A command line, its words between spaces."""
    return Case(name or f"{tool} {line}", tool, tuple(line.split()), says, files or {})


def folder(path: Path, saved: Path) -> None:
    """A file of a case that is a folder."""
    path.mkdir()


def pipe(path: Path, saved: Path) -> None:
    """A file of a case that is a named pipe: reading it would wait for ever."""
    os.mkfifo(path)


def _too_long(number, frame):
    raise TimeoutError


def run_here(tool: str, words, cwd: Path) -> tuple[int, str, str]:
    """tools/<tool>.py in this process: exit code, stdout and stderr."""
    out, err, argv, previous = io.StringIO(), io.StringIO(), sys.argv, signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(SECONDS)
    sys.argv = [f"tools/{tool}.py", *words]
    try:
        with contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            importlib.import_module(f"tools.{tool}").cli()
    except SystemExit as end:
        return end.code, out.getvalue(), err.getvalue()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
        sys.argv = argv
    raise AssertionError("cli() always ends the process")
