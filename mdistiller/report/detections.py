"""Pictures of detections that tools/detections.py left in run folders, as a section of the report."""

import base64
from collections.abc import Sequence
from html import escape

from mdistiller.runs.records import RunRecord

PICTURE = "detections.png"


def detections_section(runs: Sequence[RunRecord], link) -> str:
    """Ground truth, teacher and student on test images of each run with a picture, or "". `link`: run -> HTML."""
    parts = [_run(run, link) for run in runs if (run.path / PICTURE).is_file()]
    return "\n".join(['<h2 id="detections">Detections</h2>', *parts]) if parts else ""


def _run(run, link):
    title = f"{run.method}, {run.config['DISTILLER.STUDENT']}"
    data = base64.b64encode((run.path / PICTURE).read_bytes()).decode()
    return (f"<figure><figcaption>{escape(title)}, {link(run)}: ground truth and detections</figcaption>"
            f'<img alt="Detections of {escape(title)}" src="data:image/png;base64,{data}"></figure>')
