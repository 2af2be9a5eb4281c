"""The folder of a run: its files and their formats. Files are written atomically, so a run can stop at any time."""

import contextlib
import datetime
import importlib.metadata
import json
import logging
import os
import platform
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from yacs.config import CfgNode

import mdistiller
from mdistiller import files
from mdistiller.config import active_cfg, dump_cfg, get_cfg, load_cfg
from mdistiller.config.files import read_yaml
from mdistiller.config.stated import flatten, flatten_checked
from mdistiller.errors import RunError, UserError, writing
from mdistiller.places import CHECKOUT, RANDOM_TEACHER
from mdistiller.plugins import edited, own_files, recorded_files, same_files, without_folders

CHECKPOINTS = ("latest.pth", "previous.pth")  # a run resumes from the first of these that can be read
FREE = {  # settings that may change between the sessions of a run; the first two are its place, and it may be moved
    "EXPERIMENT.PROJECT", "EXPERIMENT.NAME", "EXPERIMENT.TAG", "DEVICE", "LOG.PREFIX", "LOG.TENSORBOARD_FREQ",
    "LOG.SAVE_CHECKPOINT_STEPS", "DATASET.ROOT", "DATASET.NUM_WORKERS", "DATASET.DOWNLOAD", "DATASET.TEST.BATCH_SIZE",
    "TEACHER_CACHE.DIR", "TEACHER_CACHE.CHECK", "SOLVER.CUDA_GRAPH",
}
OF_ITS_OWN = "set EXPERIMENT.NAME, or in a sweep EXPERIMENT.PROJECT, for a run of its own"
TEACHER = "DISTILLER.TEACHER_CHECKPOINT"
SOFTWARE = ("commit", "python", "versions")  # of a session, in run.json
LIBRARIES = ("torch", "torchvision", "timm", "numpy", "scikit-learn", "yacs", "tensorboard")
log = logging.getLogger("mdistiller")


def read_recorded(path: Path, opts: Sequence = (), trusted: Sequence[str] = ()) -> CfgNode:
    """The config of a run from its file, see `load_cfg`. Raises UserError for a file that was cut off."""
    cfg = load_cfg(path, opts, trusted)
    flatten_checked(read_yaml(path), path)
    return cfg


def run_name(cfg: CfgNode) -> str:
    """EXPERIMENT.NAME with "{seed}" replaced by the seed, or a name made of data, method, networks and seed."""
    experiment, distiller = cfg.EXPERIMENT, cfg.DISTILLER
    if experiment.NAME:
        return experiment.NAME.replace("{seed}", str(experiment.SEED))
    networks = [distiller.STUDENT] if distiller.TYPE == "NONE" else [distiller.TEACHER, distiller.STUDENT]
    method = distiller.TYPE.lower() + ("_ls" if distiller.LS else "")
    parts = [cfg.DATASET.TYPE, method, *networks, f"s{experiment.SEED}"]
    return "_".join(part.replace("/", "-").replace(":", "-") for part in parts)


class RunFolder:
    """Files of one run in `<LOG.PREFIX>/<EXPERIMENT.PROJECT>/<name>`."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._lock = None

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @classmethod
    def open(cls, cfg: CfgNode, resume: bool) -> "RunFolder":
        """The run folder of this config: a new one, or with `resume` the existing one.

        A resumed run keeps its precision: SOLVER.AMP auto becomes what the folder records.

        Raises UserError when the folder already contains a run and `resume` is False, when that run has another
        config, or when the folder contains other files.
        """
        folder = cls(Path(cfg.LOG.PREFIX) / cfg.EXPERIMENT.PROJECT / run_name(cfg))
        if (folder / "config.yaml").is_file():
            folder.check_settings(cfg)
            if not resume:
                raise folder._taken()
            folder._check_state()
        elif folder.path.is_file() or (folder.path.exists() and any(_visible(folder.path))):
            raise UserError(
                f"{folder.path}: not empty and not a run folder (no config.yaml); choose another EXPERIMENT.NAME"
            )
        return folder

    def check_settings(self, cfg: CfgNode) -> None:
        """Raise UserError when the run in the folder has other settings. SOLVER.AMP auto becomes what it records."""
        recorded = read_recorded(self / "config.yaml", trusted=cfg.EXPERIMENT.PLUGINS)
        if cfg.SOLVER.AMP == "auto":  # the run keeps its precision, whatever auto means on this machine
            cfg.SOLVER.AMP = recorded.SOLVER.AMP
        moved = same_files(recorded_files(self.read_json("run.json")), own_files(flatten(cfg)))
        changed = differences(settings(recorded), settings(cfg), moved=moved)
        if changed:
            raise UserError(f"{self.path}: already contains a run with other settings: {changed}; set them as "
                            f"there to continue it, {OF_ITS_OWN}, or delete the folder")

    def _taken(self):
        return UserError(f"{self.path}: already contains a run; add --resume, or set EXPERIMENT.NAME or .SEED")

    def _check_state(self):
        """Raise UserError when the checkpoints are missing, so that resuming would overwrite the results of the run."""
        if any((self / name).is_file() for name in CHECKPOINTS):
            return
        epochs = len(files.read_text(self / "metrics.jsonl").splitlines())
        if self.finished or epochs > 1:  # a run that is killed before its first checkpoint may have one epoch
            raise UserError(
                f"{self.path}: the run {'has finished' if self.finished else f'has {epochs} epochs'}, and its "
                f"checkpoints ({' and '.join(CHECKPOINTS)}) are missing; restore one, or move the folder away to start "
                "a new run"
            )

    def take(self, resume: bool) -> None:
        """Lock the folder for this process until `release`. Raises UserError when another process trains in it."""
        self._lock = files.lock(self / ".lock", inherited=False)
        if self._lock is None:
            raise UserError(f"{self.path}: another process trains in this folder; wait for it, or set EXPERIMENT.NAME")
        if not resume and (self / "config.yaml").is_file():  # another process began a run after `open`
            raise self._taken()

    def to_write(self, name: str) -> Path:
        """The path of a file that the run is about to write.

        Raises RunError when the folder that this process has locked was removed, moved or replaced: the file would
        belong to another run, or to none.
        """
        if self._lock is not None:
            try:
                there = os.stat(self / ".lock")
            except FileNotFoundError:
                there = None
            if there is None or not os.path.samestat(there, os.fstat(self._lock.fileno())):
                raise RunError(f"{self.path}: this run's folder was removed, moved or replaced: the run ends")
        return self / name

    def release(self) -> None:
        """Release the lock, so that another process may train in the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    @property
    def finished(self) -> bool:
        """Whether the run has completed its last epoch."""
        return self.read_json("summary.json").get("status") == "done"

    def check_same(self, **digests: str | None) -> None:
        """Raise UserError when the existing run used another teacher or other data, compared by SHA-256."""
        there = self.read_json("run.json")
        for key, digest in digests.items():
            if there.get(key) and digest and there[key] != digest:
                words = {"teacher_sha256": "another teacher", "data_sha256": "other training data"}[key]
                raise UserError(
                    f"{self / 'run.json'}: the run to resume has {words}: {key} {there[key]} there, {digest} now; "
                    f"{OF_ITS_OWN}"
                )

    def describe(self, cfg: CfgNode, **metadata) -> None:
        """Write config.yaml, and run.json with the provenance of the run and of its earlier sessions.

        `metadata` are further entries of run.json. The files of a finished run are left unchanged.
        """
        if self.finished:
            return
        self.write_text("config.yaml", dump_cfg(active_cfg(cfg)))
        earlier = _sessions(self.read_json("run.json"))
        session = {
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": shlex.join(sys.argv),
            "host": socket.gethostname(),
            "commit": commit(),
            "python": platform.python_version(),
            "versions": versions(),
            "own_files": own_files(flatten(cfg)),
            **metadata,
        }
        content = {
            "seed": cfg.EXPERIMENT.SEED,
            "overridden": overridden(cfg),
            "package": str(Path(mdistiller.__file__).parent),
            **session,
            "sessions": [*earlier, session],
        }
        self.write_json("run.json", content)

    @contextlib.contextmanager
    def as_it_was_if_refused(self) -> Iterator[None]:
        """Within this context, a UserError takes back what `describe` wrote over the records of an existing run.

        Otherwise they would name a session that trained nothing, and the next one would be compared with its software.
        """
        before = {name: files.read_text(self / name) for name in ("config.yaml", "run.json") if (self / name).is_file()}
        try:
            yield
        except UserError:
            for name, text in before.items():
                if self._lock is not None and files.read_text(self / name) != text:
                    self.write_text(name, text)
            raise

    def edited(self) -> list[str]:
        """The names of the user's Python files that have changed since the session of the run before this one."""
        *earlier, now = map(recorded_files, self.read_json("run.json").get("sessions") or [{}])
        return edited(earlier[-1] if earlier else {}, now)

    def changed_software(self) -> list[str]:
        """What the session of the run before this one ran on that is another now: "torch 2.8.0 (now 2.9.0)"."""
        *earlier, now = map(_software, self.read_json("run.json").get("sessions") or [{}])
        before = earlier[-1] if earlier else {}
        return [f"{name} {before[name]} (now {now[name]})" for name in before
                if now.get(name, before[name]) != before[name]]

    def write_text(self, name: str, text: str) -> None:
        files.write_text(self.to_write(name), text)

    def write_json(self, name: str, content: dict) -> None:
        self.write_text(name, json.dumps(content, indent=1) + "\n")

    def read_json(self, name: str) -> dict:
        """The content of a JSON file, or {} when it is missing or incomplete.

        Raises UserError when it does not hold the data of a run.
        """
        try:
            content = json.loads(files.read_plain(self / name))
        except (OSError, ValueError, RecursionError):
            return {}
        if not isinstance(content, dict) or not isinstance(content.get("sessions", []), list):
            raise UserError(f"{self / name}: does not hold the data of a run; restore it, or delete it")
        return content

    def keep_metrics_before(self, epoch: int) -> list[dict]:
        """Remove the lines of metrics.jsonl from `epoch` on, which a resumed run writes again; returns the others."""
        kept = []
        if (self / "metrics.jsonl").is_file():
            for line in files.read_text(self / "metrics.jsonl").splitlines():
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    continue  # incomplete: the run was killed while writing it
                if not isinstance(row, dict) or not isinstance(row.get("epoch"), int):
                    raise UserError(f"{self / 'metrics.jsonl'}: expected an epoch in every line, found {line[:50]!r}")
                if row["epoch"] < epoch:
                    kept.append(row)
            self.write_text("metrics.jsonl", "".join(json.dumps(row) + "\n" for row in kept))
        return kept

    def append_metrics(self, row: dict) -> None:
        """Append a line to metrics.jsonl. Raises RunError when it cannot be written, or see `to_write`.

        An incomplete line is removed when the run is resumed.
        """
        path = self.to_write("metrics.jsonl")
        with writing(path), open(path, "a") as file:
            file.write(json.dumps(row) + "\n")


def _sessions(record):
    """The sessions in a run.json. The first versions wrote the software of the last one beside them alone."""
    sessions = record.get("sessions", [])
    if sessions and isinstance(sessions[-1], dict):
        sessions[-1] = {name: record[name] for name in SOFTWARE if name in record} | sessions[-1]
    return sessions


def _software(session):
    """{name: text} of what the results of a session depend on beside its settings; older or odd records name less."""
    session = session if isinstance(session, dict) else {}
    versions = session.get("versions")
    named = {name: session.get(name) for name in ("commit", "device", "python")}
    named |= versions if isinstance(versions, dict) else {}
    return {name: value for name, value in named.items() if isinstance(value, str)}


def _visible(folder):
    """The entries of a folder without hidden ones, which are the temporary files of a killed run."""
    return (path for path in folder.iterdir() if not path.name.startswith("."))


def overridden(cfg: CfgNode) -> dict:
    """The settings that the run reads and that differ from their defaults, by dotted key.

    Reports need them because they do not know the defaults of methods.
    """
    defaults = flatten(get_cfg())
    return {key: value for key, value in flatten(active_cfg(cfg)).items() if value != defaults[key]}


def settings(cfg: CfgNode) -> dict[str, Any]:
    """The settings that a run keeps in all its sessions, by dotted key: not FREE, nor those that its method ignores."""
    return {key: value for key, value in flatten(active_cfg(cfg)).items() if key not in FREE}


def differences(there: Mapping, now: Mapping, elsewhere: bool = True, moved: bool = True) -> str:
    """The first settings that differ, in words; "" when none does.

    Keys that only one of them has belong to another method, whose DISTILLER.TYPE differs too, or to a later version.
    With `elsewhere`, the teacher's file may have another path, since the caller compares its SHA-256; a teacher with
    random weights has none, so that "random" in place of a file is a difference. With `moved`, the user's Python files
    may have other folders.
    """
    place = without_folders if moved else lambda value: value
    keys = [key for key in sorted(there.keys() & now.keys()) if place(there[key]) != place(now[key])
            and not (elsewhere and key == TEACHER and RANDOM_TEACHER not in (there[key], now[key]))]
    return ", ".join(f"{key} ({there[key]!r} there, {now[key]!r} now)" for key in keys[:5])


def commit() -> str | None:
    """The git commit of the package's checkout, with "+changes" for modified files; None outside a checkout."""
    if CHECKOUT is None:
        return None
    try:
        if _git("rev-parse", "--show-prefix"):
            return None  # an installed copy, inside the checkout of something else
        return _git("rev-parse", "HEAD") + ("+changes" if _git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*words):
    """What git says of the checkout. Raises OSError or SubprocessError, also where there is no checkout.

    The checkout may belong to another user, as in a container: its code runs here already.
    """
    git = ["git", "-c", f"safe.directory={CHECKOUT}", "-C", str(CHECKOUT)]
    done = subprocess.run([*git, *words], capture_output=True, timeout=10, check=True)
    return done.stdout.decode(errors="replace").strip()


def versions() -> dict[str, str]:
    """Versions of this package and of the installed libraries that influence results."""
    found = {"mdistiller": mdistiller.__version__}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def device_name(device: torch.device) -> str:
    """The name of the GPU, or the type of the device with the number of threads and the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({torch.get_num_threads()} threads, {platform.processor() or platform.machine()})"
