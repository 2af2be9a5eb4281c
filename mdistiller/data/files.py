"""Image files: found in class folders, and checked before a run begins."""

import contextlib
import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from mdistiller.distributed import gather, part_on_this_machine
from mdistiller.errors import UserError, counted
from mdistiller.files import open_plain

log = logging.getLogger("mdistiller")
OTHER_VAL = ("val", "validation", "valid", "test", "testing", "eval")  # usual names of folders of test images
NAMED = 3  # number of files in an error message
JPEG_END = b"\xff\xd9"
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's, in its order
# Formats of the suffixes that torchvision reads. Others are not allowed: Pillow's PostScript reader runs a program.
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")
MOST_PIXELS = 89_478_485  # of one image; Pillow warns above this number and raises an error above twice the number
# Warnings about unused transparency and metadata, switched off globally because threads cannot change filters.
warnings.filterwarnings("ignore", module=r"PIL\b")
warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MOST_PIXELS is checked instead
THREADS = min(32, (os.cpu_count() or 1) + 4)  # they mostly wait for the disk, and decoding releases Python's lock


@dataclass(frozen=True)
class ImageFiles:
    """Images below `root`: `names` (N,), bytes in one block of memory that workers share, and `labels` (N,) int64."""

    root: Path
    names: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def name(self, position: int) -> str:
        """The file's name relative to the root."""
        return os.fsdecode(self.names[position])

    def path(self, position: int) -> Path:
        """The path of an image."""
        return self.root / self.name(position)

    def take(self, positions: np.ndarray) -> "ImageFiles":
        """The images at `positions`, in this order."""
        return ImageFiles(self.root, self.names[positions], self.labels[positions])


def find_folder(root: str | Path, name: str, *patterns: str, val: str = "val") -> Path:
    """The first folder that contains train/ or `val`, among those below `root` that match a pattern, and `root` itself.

    Raises UserError, with the `name` of the data set, if there is none.
    """
    root = Path(root)
    for folder in (*(match for pattern in patterns for match in sorted(root.glob(pattern))), root):
        if (folder / "train").is_dir() or (folder / val).is_dir():
            return folder
    expected = f"{patterns[0]}/ with train/ and {val}/" if patterns else f"train/<class>/ and {val}/<class>/"
    raise UserError(f"DATASET.ROOT {root}: {name} is missing, expected {expected} in it; set DATASET.ROOT")


def class_names(folder: Path) -> tuple[str, ...]:
    """The sorted names of the folders in a folder, as classes in torchvision.

    Raises UserError if there are none, and for links that lead nowhere, as to a disk that is not mounted.
    """
    if not folder.is_dir():
        other = next((name for name in OTHER_VAL if (folder.parent / name).is_dir()), None)
        hint = f"; to use {folder.parent / other}, set DATASET.VAL_FOLDER {other}" if other else ""
        raise UserError(f"{folder} is missing: expected a folder for each class in it{hint * (folder.name != 'train')}")
    entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    dangling = sorted(entry.name for entry in entries if entry.is_symlink() and not os.path.exists(entry))
    if dangling:
        raise UserError(f"{folder} has links that lead nowhere ({len(dangling)}): {_some(dangling)}")
    names = sorted(entry.name for entry in entries if entry.is_dir())
    if not names:
        raise UserError(f"{folder}: no class folders: expected its images in {folder.name}/<class>/")
    return tuple(names)


def scan_classes(folder: Path, classes: Sequence[str]) -> ImageFiles:
    """All images in the class folders and their subfolders; a label is the index of its class in `classes`.

    Raises UserError if the class folders differ from `classes`, and for a class without images.
    """
    _same_classes(folder, set(class_names(folder)), set(classes))
    names, counts = [], []
    for name in classes:
        found = sorted(
            os.path.join(below, file)
            for place, files in _walk(folder / name)
            for below in [os.path.relpath(place, folder)]  # of the folder: of each of a million files it takes seconds
            for file in files
            if file.lower().endswith(SUFFIXES) and not file.startswith(".")
        )
        if not found:
            raise UserError(f"{folder / name}: no images: expected files {', '.join(SUFFIXES)}")
        names += found
        counts.append(len(found))
    return image_files(folder, names, np.repeat(np.arange(len(classes)), counts))


def _walk(folder):
    seen = set()
    for place, _, files in os.walk(folder, onerror=_unreadable, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            raise UserError(f"{place}: a link to a folder of the same class, whose images would be used twice")
        seen.add(real)
        yield place, files


def _unreadable(error):
    raise UserError(f"{error.filename}: cannot be read: {error.strerror}") from None


def image_files(root: Path, names: Sequence[str], labels: np.ndarray) -> ImageFiles:
    """`ImageFiles` from names as texts."""
    return ImageFiles(root, np.array([os.fsencode(name) for name in names]), labels.astype(np.int64))


def _same_classes(folder, found, expected):
    for names, problem in (
        (expected - found, "lacks class folders of train/"), (found - expected, "has class folders that train/ lacks")
    ):
        if names:
            raise UserError(f"{folder} {problem} ({len(names)}): {_some(sorted(names))}")


def _some(names):
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")


def open_image(path: Path | str) -> Image.Image:
    """The image as RGB. Transparency and the EXIF orientation are ignored, as in torchvision.

    Raises the exceptions of Pillow, OSError if it is not a regular file, and ValueError for more than MOST_PIXELS, and
    for pixels of more than 8 bits per channel, which Pillow would clip at 255.
    """
    with _opened(path) as (_, image):
        return image.convert("RGB")


def quick_check(path: Path | str) -> tuple[int, int]:
    """(width, height) of an image; raises an exception for another or incomplete file, without decoding most files.

    The header of every file is read. A JPEG that ends with its end marker is accepted, since a truncated one does not.
    All other files, including a JPEG with further bytes after its end, are decoded. For a PNG, comparing checksums
    would be faster, but it does not detect missing data. Changed bytes inside the pixels of a JPEG are not detected;
    decoders rarely detect them either.
    """
    with _opened(path) as (file, image):
        if image.format != "JPEG" or not _ends(file):
            image.load()
        return image.size


@contextlib.contextmanager
def _opened(path):
    """The open file and its image, whose pixels are not decoded yet."""
    with open_plain(path) as file, Image.open(file, formats=FORMATS) as image:
        _check_mode(image)
        if image.width * image.height > MOST_PIXELS:
            raise ValueError(f"{image.width}x{image.height} pixels, expected at most {MOST_PIXELS} in all")
        yield file, image


def _check_mode(image):
    if image.mode[0] in "IF":
        raise ValueError(f"pixels of mode {image.mode}, expected 8 bits per channel")


def _ends(file):
    place = file.tell()
    file.seek(-len(JPEG_END), os.SEEK_END)
    end = file.read()
    file.seek(place)
    return end == JPEG_END


def problem_of(action: Callable, *args) -> str | None:
    """A short description of the error of `action(*args)` for an image, or None if it succeeds."""
    try:
        action(*args)
    except MemoryError:
        raise
    except UnidentifiedImageError:
        return "not an image"
    except OSError as error:
        return error.strerror or str(error)
    except Exception as error:  # damaged files raise many kinds of exceptions
        return str(error) or type(error).__name__
    return None


def sound_positions(
    sets: Sequence[ImageFiles], examine: Callable[[int, int], None], task: str, skip_broken: bool, divided: bool = False
) -> list[np.ndarray]:
    """Positions of the intact images of each set: those for which `examine(set, position)` raises no exception.

    The images are examined in threads, with a progress bar labelled `task`. Raises UserError with the first broken
    files and their number. With `skip_broken`, broken files are logged and left out, and UserError is raised only if a
    class has no other images. With `divided`, each process of a machine examines a part, and all know of all problems:
    the files of ImageNet take a minute or more, and those of a network drive would be opened by every process.
    """
    sound, broken = [], []
    for number, files in enumerate(sets):
        positions = part_on_this_machine(len(files)) if divided else range(len(files))
        own = _examine_all(lambda position, number=number: problem_of(examine, number, position), positions,
                           f"{task} {files.root.name}")
        parts = gather(own) if divided else [own]
        problems = dict(sorted(pair for part in parts for pair in part.items()))
        broken += [f"{files.path(position)} ({problem})" for position, problem in problems.items()]
        sound.append(np.delete(np.arange(len(files)), list(problems)))
    if broken and not skip_broken:
        more = f" and {len(broken) - NAMED} more" if len(broken) > NAMED else ""
        raise UserError(
            f"DATASET.ROOT: {counted(len(broken), 'broken image')}: {', '.join(broken[:NAMED])}{more}; restore them, "
            "or skip them with DATASET.SKIP_BROKEN True"
        )
    for image in broken:
        log.warning("skipped broken image: %s", image)
    for files, positions in zip(sets, sound, strict=True):
        lost = np.setdiff1d(files.labels, files.labels[positions])
        if len(lost):
            example = files.path(int(np.flatnonzero(files.labels == lost[0])[0])).parent
            raise UserError(f"{example}: every image of the class is broken ({counted(len(lost), 'such class')})")
    return sound


def _examine_all(problem, positions, task):
    """{position: problem} of those with a problem. An interruption, such as Ctrl-C, cancels what has not begun."""
    quiet = True if os.environ.get("RANK", "0") != "0" else None  # None: quiet unless stdout is a terminal
    pieces = [positions[start:start + 64] for start in range(0, len(positions), 64)]
    stopped = threading.Event()

    def problems(piece):
        return [None if stopped.is_set() else problem(position) for position in piece]

    pool, found = ThreadPoolExecutor(THREADS), {}  # unlike multiprocessing's pool of threads, it needs no /dev/shm
    with tqdm(total=len(positions), desc=task, leave=False, file=sys.stdout, disable=quiet) as bar:
        try:
            for piece, texts in zip(pieces, pool.map(problems, pieces), strict=True):
                bar.update(len(piece))
                found |= {position: text for position, text in zip(piece, texts, strict=True) if text}
        finally:
            stopped.set()
            pool.shutdown(cancel_futures=True)
    return found


def decode_all(
    sets: Sequence[ImageFiles], size: int, prepare: Callable[[Image.Image], Image.Image], skip_broken: bool
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Images (N, size, size, 3) uint8 and labels (N,) of each set, decoded once.

    `prepare` resizes an image or raises an exception; errors are reported as by `sound_positions`.
    """
    arrays = [np.empty((len(files), size, size, 3), np.uint8) for files in sets]

    def store(number, position):
        arrays[number][position] = prepare(open_image(sets[number].path(position)))

    sound = sound_positions(sets, store, "reading", skip_broken)
    return [
        (array if len(kept) == len(files) else array[kept], files.labels[kept])
        for files, array, kept in zip(sets, arrays, sound, strict=True)
    ]
