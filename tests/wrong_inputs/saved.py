"""Files that wrong inputs must not change: a teacher, runs with checkpoints and traces, a cache, measurements."""

import hashlib
import os
from pathlib import Path

from tests.engine.support import few_test_images
from tests.forked import run_tool

BASE = """
DATASET: {TYPE: digits, TRAIN_FRACTION: 0.5, TEST: {BATCH_SIZE: 512}}
DISTILLER: {TYPE: EA-KD, TEACHER: resnet8, STUDENT: resnet8, TEACHER_CHECKPOINT: random}
SOLVER: {BATCH_SIZE: 64, EPOCHS: 1, LR_DECAY_STAGES: []}
LOG: {PREFIX: out, SAVE_CHECKPOINT_FREQ: 1, ENTROPY_TRACE: 40}
DEVICE: cpu
"""


def make_saved(folder: Path) -> None:
    """Fill `folder`. Every command here must succeed."""
    folder.mkdir()
    (folder / "base.yaml").write_text(BASE)
    teacher = folder / "teachers" / "t" / "student_best.pth"
    of_run = ["LOG.PREFIX", "runs", "DISTILLER.TEACHER_CHECKPOINT", str(teacher)]
    commands = [
        ("train", "DISTILLER.TYPE", "NONE", "LOG.PREFIX", ".", "EXPERIMENT.PROJECT=teachers", "EXPERIMENT.NAME", "t"),
        ("train", *of_run, "EXPERIMENT.NAME", "ea", "TEACHER_CACHE.ENABLED", "True", "TEACHER_CACHE.DIR", "caches"),
        ("train", *of_run, "EXPERIMENT.NAME", "kd", "DISTILLER.TYPE", "KD"),
        ("analyze", "--figure", "1", "3", "--runs", "runs", "--methods", "KD", "EA-KD", "--output", "analysis"),
    ]
    for tool, *words in commands:
        words = ["--cfg", "base.yaml", *words] if tool == "train" else words
        with few_test_images():
            done = run_tool(tool, words, folder)
        assert done.returncode == 0, f"{tool} {words}: {done.stderr}\n{done.stdout}"
    (cache,) = (folder / "caches").iterdir()
    cache.rename(folder / "cache")
    (folder / "caches").rmdir()


def files_below(folder: Path) -> list[Path]:
    return [Path(place, name) for place, _, names in os.walk(folder) for name in names]


def stamps(folder: Path) -> dict[Path, tuple]:
    """Path -> (size, time of its last change in ns, inode) of every file below `folder`."""
    found = {path: path.stat() for path in files_below(folder)}
    return {path: (stat.st_size, stat.st_mtime_ns, stat.st_ino) for path, stat in found.items()}


def snapshot(folder: Path) -> dict[Path, tuple[int, str]]:
    """Path -> (size, SHA-256) of every file below `folder`."""
    return {path: (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files_below(folder)}
