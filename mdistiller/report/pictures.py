"""Pictures for the page: detections that tools/detections.py left in run folders, and the figures of a folder."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from mdistiller.runs.records import RunRecord

DETECTIONS = "detections.png"


def detections_of(runs: Sequence[RunRecord]) -> Iterator[tuple[RunRecord, bytes]]:
    """(run, PNG) of each run with a picture: ground truth, teacher and student on test images."""
    for run in runs:
        if (run.path / DETECTIONS).is_file():
            yield run, (run.path / DETECTIONS).read_bytes()


def figures_in(folder: str | Path | None) -> Iterator[tuple[str, bytes]]:
    """(name, PNG) of the files figure_<name>.png of a folder, which may be missing."""
    paths = sorted(path for path in Path(folder).glob("figure_*.png") if path.is_file()) if folder else []
    for path in paths:
        yield path.stem.removeprefix("figure_"), path.read_bytes()
