"""The training of a table's cell: config file, overrides and smoke settings. Does not import torch."""

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from mdistiller.config.files import read_yaml
from mdistiller.config.keys import OTHER_SPELLINGS
from mdistiller.config.stated import BASE, stated
from mdistiller.errors import UserError
from mdistiller.files import sha256
from mdistiller.places import find_config, find_teacher
from mdistiller.plugins import own_files
from mdistiller.runs.paper import Cell
from mdistiller.runs.records import RunRecord, counts

OWN_DATA = ("imagefolder", "coco", "instructions")  # types whose data are what the user puts into DATASET.ROOT
ROOT, TEACHER = "DATASET.ROOT", "DISTILLER.TEACHER_CHECKPOINT"
LONGEST_NAME = 150  # characters; file systems allow 255 bytes
SMOKE = read_yaml(Path(__file__).parent / "smoke.yaml")


@cache
def _sha256(path, changed):
    """The SHA-256 of a teacher's file, which many trainings share; `changed` is the time of its last change."""
    return sha256(path)


@dataclass(frozen=True)
class Training:
    """A config file with overrides ("KEY=VALUE"), from a cell of a table or from the command line."""

    config: str  # path relative to the working folder or to the shipped files, see `find_config`
    overrides: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()  # overrides of the command line, for all trainings
    smoke: bool = False
    known: Mapping[str, Any] = field(default_factory=dict, compare=False)  # published settings, the file may omit them

    @classmethod
    def of_cell(cls, cell: Cell, extra: tuple[str, ...] = (), smoke: bool = False) -> "Training":
        return cls(cell.run.config, cell.run.overrides, extra, smoke, cell.run.settings)

    def __post_init__(self):
        for override in self.extra:
            if override.split("=")[0] in ("EXPERIMENT.NAME", "EXPERIMENT.SEED"):
                raise UserError(f"command line: {override}: names and seeds are set by the sweep; use --seeds N")

    @property
    def pair(self) -> str:
        return Path(self.config).stem

    @property
    def path(self) -> Path:
        """The config file, see `find_config`. Raises UserError when it does not exist."""
        return find_config(self.config)

    @property
    def all_overrides(self) -> tuple[str, ...]:
        """Own overrides, smoke settings, overrides of the command line; later ones take precedence."""
        if not self.smoke:
            return (*self.overrides, *self.extra)
        own = (*self.overrides, *SMOKE["overrides"], *SMOKE["pairs"].get(self.pair, ()))
        return (*own, *self._real_images(own), f"LOG.PREFIX={SMOKE['prefix']}", *self.extra)

    def _real_images(self, overrides):
        """The override for real images in a smoke run, if their folder is below DATASET.ROOT."""
        real = SMOKE["real"].get(stated(None, overrides)["DATASET.TYPE"])
        root = stated(None, self.extra).get("DATASET.ROOT", BASE["DATASET.ROOT"])
        return (f"DATASET.TYPE={real}",) if real and (Path(root) / real).is_dir() else ()

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """The settings that the file and all overrides state, added to the `known` ones."""
        return {**self.known, **stated(self.path, self.all_overrides)}

    @cached_property
    def published(self) -> Mapping[str, Any]:
        """The settings without smoke settings and overrides of the command line."""
        if not (self.smoke or self.extra):
            return self.settings  # reading the files again would take as long as all the rest
        return {**self.known, **stated(self.path, self.overrides)}

    @property
    def changed(self) -> frozenset[str]:
        """Keys that count and whose values the command line (or --smoke) changes."""
        method = self.settings.get("DISTILLER.TYPE", "NONE")
        return frozenset(
            key for key, value in self.settings.items()
            if counts(key, method) and value != self.published.get(key, BASE.get(key))
        )

    def has_files_of(self, run: RunRecord) -> bool:
        """Whether a run had the same teacher, by its SHA-256, and the same folder of a user's own data.

        What cannot be told counts as the same: a teacher's file that is not there yet, a run without a digest.
        """
        if self.settings.get("DATASET.TYPE") in OWN_DATA:
            roots = (settings.get(ROOT, BASE[ROOT]) for settings in (self.settings, run.config))
            if len(set(map(os.path.realpath, roots))) > 1:
                return False
        digest = self.teacher_sha256
        return None in (digest, run.teacher_sha256) or digest == run.teacher_sha256

    @cached_property
    def teacher_sha256(self) -> str | None:
        """The SHA-256 of the teacher's file; None without a teacher or a file."""
        settings = {**BASE, **self.settings}
        if settings["DISTILLER.TYPE"] == "NONE":
            return None
        try:
            path = find_teacher(settings["DATASET.TYPE"], settings["DISTILLER.TEACHER"], settings[TEACHER])
            return _sha256(path, path.stat().st_mtime_ns)
        except (UserError, OSError):  # also random and a library's weights; the run will say whether a file is missing
            return None

    @cached_property
    def own_files(self) -> Mapping[str, str]:
        """Name and SHA-256 of the user's Python files that the settings name."""
        return own_files(self.settings)

    @property
    def prefix(self) -> Path:
        """The folder of all projects."""
        return Path(self.settings.get("LOG.PREFIX", BASE["LOG.PREFIX"]))

    @cached_property
    def project(self) -> str:
        """The folder below `prefix` that contains the run folders. Raises UserError for a folder elsewhere."""
        project = stated(None, self.extra).get("EXPERIMENT.PROJECT", "sweep")
        parts = Path(project).parts
        if not parts or ".." in parts or Path(project).is_absolute():
            raise UserError(f"command line: EXPERIMENT.PROJECT: expected, in a sweep, a folder below LOG.PREFIX, such "
                            f"as sweep; found {project!r}")
        return project

    @property
    def name(self) -> str:
        """A name made of the config path and the overrides that count or name files, without the smoke settings."""
        parts = Path(self.config).with_suffix("").parts
        parts = parts[parts.index("configs") + 1:] if "configs" in parts else parts[-2:]
        method = self.settings.get("DISTILLER.TYPE", "NONE")
        content = {TEACHER, *([ROOT] if self.settings.get("DATASET.TYPE") in OWN_DATA else [])}
        shown = [text for text in (*self.overrides, *self.extra)
                 if text.split("=")[0] in content or counts(_spelled(text.split("=")[0]), method)]
        name = re.sub(r"[^\w.+-]+", "-", "_".join([*parts, *(text.replace("=", "-") for text in shown)])).strip("-")
        if len(name) <= LONGEST_NAME:
            return name
        return f"{name[:LONGEST_NAME]}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _spelled(key):
    """The key that another spelling stands for, and that of the method for DISTILLER.EA; any other key itself."""
    return "DISTILLER.TYPE" if key == "DISTILLER.EA" else OTHER_SPELLINGS.get(key, key)
