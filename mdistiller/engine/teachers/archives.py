"""Public teachers: an index of archives, and their download, verification and installation into checkpoints/."""

import json
import logging
import os
import reprlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mdistiller import files
from mdistiller.config.words import nearest
from mdistiller.engine import checkpoints
from mdistiller.engine.reopen import evaluate_checkpoint
from mdistiller.engine.teachers.download import download
from mdistiller.engine.teachers.unpack import extract
from mdistiller.errors import DISK_FAILS, UserError, cannot_write
from mdistiller.models import MODELS, build_model
from mdistiller.places import CHECKPOINTS, HOME

log = logging.getLogger("mdistiller")
FOLDER = HOME / "checkpoints"
INDEX = CHECKPOINTS / "index.json"
UNPACKING = ".unpacking"  # how the name of a folder begins into which an archive is unpacked
MAX_INDEX = 16 << 20  # bytes of an index
MAX_CLASSES = 1_000_000  # of a data set; a classifier for more would not fit into memory
MAX_NUMBER = 1e9  # upper limit of percentages and megabytes in an index
TOLERANCE = 0.1  # percentage points of top-1, since rounding differs between devices


@dataclass(frozen=True)
class Teacher:
    """A checkpoint: its `file` below the checkpoint folder, published top-1 (percent), and SHA-256 if known."""

    name: str
    file: str
    top1: float
    sha256: str | None = None


@dataclass(frozen=True)
class TeacherSet:
    """The teachers of a data set and the archive that contains them; `urls` are tried in order."""

    name: str
    about: str
    family: str
    num_classes: int
    archive: str
    urls: tuple[str, ...]
    megabytes: int
    sha256: str | None
    teachers: tuple[Teacher, ...]


def read_index(path: str | Path = INDEX) -> dict[str, TeacherSet]:
    """The teacher sets of an index file by name. Raises UserError when the file is missing or has another format."""
    try:
        with files.open_plain(path) as file:
            content = json.loads(file.read(MAX_INDEX))
        return {name: _read_set(name, entry) for name, entry in content.items()}
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: not an index of teachers ({type(error).__name__}: {str(error)[:200]})") from None


def _read_set(name, entry):
    archive = entry["archive"]
    teachers = tuple(Teacher(teacher, **fields) for teacher, fields in entry["teachers"].items())
    for file in (archive["file"], *(teacher.file for teacher in teachers)):
        if PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts:
            raise ValueError(f"{file} leads outside the folder")
    wanted = TeacherSet(
        name, entry["about"], entry["family"], entry["num_classes"], archive["file"], tuple(archive["urls"]),
        archive["megabytes"], archive["sha256"], teachers,
    )
    _check_set(wanted)
    return wanted


def _check_set(wanted):
    """Raise ValueError for a value of the wrong type, and for networks that are not part of this package.

    Other network names may refer to Python files, and an index must not cause these to be imported.
    """
    _expect("family", wanted.family, f"one of {', '.join(MODELS)}", isinstance(wanted.family, str)
            and wanted.family in MODELS)
    _expect("num_classes", wanted.num_classes, f"a number of classes up to {MAX_CLASSES}",
            _number(wanted.num_classes, int) and 0 < wanted.num_classes <= MAX_CLASSES)
    _expect("megabytes", wanted.megabytes, "a number", _number(wanted.megabytes, int | float))
    _expect("urls", list(wanted.urls), "a list of addresses", all(isinstance(url, str) for url in wanted.urls))
    _expect("about", wanted.about, "a text", isinstance(wanted.about, str))
    _expect("sha256", wanted.sha256, "a text or null", isinstance(wanted.sha256, str | None))
    for teacher in wanted.teachers:
        known = MODELS[wanted.family]
        near = nearest(teacher.name, known, 1)
        _expect("teachers", teacher.name, f"a network of {wanted.family}; nearest: {', '.join(near or sorted(known))}",
                teacher.name.lower() in map(str.lower, known))
        _expect(f"{teacher.name}: top1", teacher.top1, "percent", _number(teacher.top1, int | float))
        _expect(f"{teacher.name}: sha256", teacher.sha256, "a text or null", isinstance(teacher.sha256, str | None))


def _number(value, kind):
    """Whether a value is a number of this type and of reasonable size."""
    return isinstance(value, kind) and not isinstance(value, bool) and abs(value) < MAX_NUMBER


def _expect(key, value, expected, holds):
    if not holds:
        raise ValueError(f"{key}: expected {expected}; found {reprlib.repr(value)}")


def choose(index: dict[str, TeacherSet], name: str) -> TeacherSet:
    """The teacher set of this name. Raises UserError with the nearest names when there is none."""
    if name not in index:
        near = nearest(name, index, 1)
        raise UserError(f"no teachers for {name!r}; nearest: {', '.join(near or index)}")
    return index[name]


def fetch(
    wanted: TeacherSet, folder: Path = FOLDER, archive: str | Path | None = None, allow_http: bool = False
) -> list[Path]:
    """Install the teachers of a set in `folder`, from a local `archive` or by download; returns their files.

    Every file is verified and loaded into its network before it is moved to its final path. Nothing is downloaded when
    all files exist and are valid. One process at a time does this. Raises UserError for errors that the user can fix,
    RunError when the disk is full.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with files.alone_in(folder):  # two downloads would write one file
            return _fetch(wanted, folder, archive, allow_http)
    except OSError as error:
        if error.errno in DISK_FAILS:
            raise cannot_write(error.filename or folder, error) from None
        raise UserError(f"{error.filename or folder}: {error.strerror or error}") from None


def _fetch(wanted, folder, archive, allow_http):
    source = Path(archive) if archive is not None else folder / wanted.archive
    for left in folder.glob(f"{UNPACKING}*"):  # of a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    if archive is None and all(problem_of(wanted, teacher, folder) is None for teacher in wanted.teachers):
        log.info("the teachers of %s are in %s already", wanted.name, folder)
        if source.is_file():  # of a process that was killed, too; a read-only folder is not written to
            source.unlink()
        return [folder / teacher.file for teacher in wanted.teachers]
    if archive is not None and not source.is_file():
        raise UserError(f"--from: no such file: {source}")
    if archive is None and not source.is_file():
        log.info("fetching %s, about %d MB, to %s", wanted.archive, wanted.megabytes, folder)
        download(wanted.urls, source, wanted.sha256, allow_http)
    with tempfile.TemporaryDirectory(dir=folder, prefix=UNPACKING) as unpacked:
        found = _unpack(wanted, source, Path(unpacked), ours=archive is None)
        for teacher, path in found:
            (folder / teacher.file).parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, folder / teacher.file)
            log.info("%s: %s", teacher.name, folder / teacher.file)
    if archive is None:
        source.unlink()
    return [folder / teacher.file for teacher, _ in found]


def _unpack(wanted, source, unpacked, ours):
    """[(teacher, its verified file)] of an archive; a downloaded archive (`ours`) that is invalid is removed."""
    try:
        if wanted.sha256 is not None and files.sha256(source) != wanted.sha256:
            raise UserError(f"{source}: its SHA-256 is not {wanted.sha256}, that of {wanted.archive}")
        extract(source, unpacked)
        found = []
        for teacher in wanted.teachers:
            path = _place_of(teacher, unpacked)
            if path is None:
                log.warning("%s has no %s (%s)", source, teacher.name, teacher.file)
                continue
            verify(wanted, teacher, path)
            found.append((teacher, path))
        if not found:
            raise UserError(f"{source}: holds none of the teachers of {wanted.name} ({wanted.teachers[0].file}, ...)")
        return found
    except UserError:
        if ours:
            source.unlink(missing_ok=True)
        raise


def _place_of(teacher, unpacked):
    """The teacher's file in an unpacked archive, with or without the outer folder; None when it is missing."""
    inner = Path(*PurePosixPath(teacher.file).parts[1:])
    return next((path for path in (unpacked / teacher.file, unpacked / inner) if path.is_file()), None)


def verify(wanted: TeacherSet, teacher: Teacher, path: Path) -> None:
    """Raise UserError unless the file has the right SHA-256, can be read safely, and fits its network strictly."""
    if teacher.sha256 is not None and (found := files.sha256(path)) != teacher.sha256:
        raise UserError(f"{path}: the SHA-256 of {teacher.name} is {found}, expected {teacher.sha256}")
    network = build_model(teacher.name, wanted.num_classes, family=wanted.family)
    checkpoints.load_network(network, path, f"{teacher.name} with {wanted.num_classes} classes")


def problem_of(wanted: TeacherSet, teacher: Teacher, folder: Path) -> str | None:
    """The problem with a teacher's file in `folder` ("missing" is one); None when the file is valid."""
    path = Path(folder) / teacher.file
    if not path.is_file():
        return "missing"
    try:
        verify(wanted, teacher, path)
    except UserError as error:
        return str(error)
    return None


def check(
    wanted: TeacherSet, folder: Path = FOLDER, data_root: str | None = None
) -> Iterator[tuple[Teacher, str, bool]]:
    """Yield (teacher, result of the check, whether it is bad); with `data_root` the accuracy is measured too.

    A teacher is bad when its file is damaged or its accuracy differs from the published one; a missing one is not bad.
    """
    for teacher in wanted.teachers:
        problem = problem_of(wanted, teacher, folder)
        if problem is not None:
            yield teacher, problem, problem != "missing"
            continue
        found = "good" + ("" if teacher.sha256 else " (its SHA-256 is not published)")
        bad = False
        if data_root is not None:
            result = evaluate_checkpoint(
                teacher.name, Path(folder) / teacher.file, wanted.name, ["DATASET.ROOT", data_root]
            )
            bad = abs(result["top1"] - teacher.top1) > TOLERANCE
            found = f"top-1 {result['top1']:.2f}, published {teacher.top1:.2f}" + (": they differ" if bad else "")
        yield teacher, found, bad
