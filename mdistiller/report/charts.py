"""The numbers behind the charts of a page, as JSON: results and curves of each run, gains, distributions of weights."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mdistiller.registry import split_ea
from mdistiller.report.book import Book, Entry
from mdistiller.runs.reading import LARGEST, finite_points, is_measurement
from mdistiller.runs.records import RunRecord
from mdistiller.runs.statistics import holm, t_critical
from mdistiller.traces import FOLDER, by_epoch, read_trace

MOST_POINTS = 120  # of a curve; of longer runs every n-th epoch is drawn, and always the last
MOST_HISTOGRAMS = 60  # epochs of a run whose weights are shown as histograms
BINS = 32
CURVES = {  # key of metrics.jsonl -> words on the axis; the headline metric comes before them
    "train_loss": "training loss", "test_loss": "loss on the test set",
    "weight_mean": "mean sample weight (nats)", "weight_std": "deviation of the weights within a batch (nats)",
    "entropy_student": "mean entropy of the student (nats)", "entropy_teacher": "mean entropy of the teacher (nats)",
    "lr": "learning rate",
}


def chart_data(book: Book) -> dict[str, Any]:
    """What the page's scripts need, as values of JSON. Raises UserError for damaged metrics or traces."""
    entries = [_entry(entry, book) for entry in book.entries]
    present = {key for entry in entries for run in entry["runs"] for key in run["curves"]}
    metrics = {f"test_{entry.first.headline}": f"{entry.metric} on the test set (%)" for entry in book.entries}
    seeds = max((len(entry.runs) for entry in book.entries), default=0)
    corrected = holm([gain.p for _, _, gain in book.gains])
    return {
        "entries": entries,
        "curves": {key: words for key, words in {**metrics, **CURVES}.items() if key in present},
        "gains": [{"entry": entry.number, "baseline": baseline.number, "mean": gain.mean, "low": number(gain.low),
                   "high": number(gain.high), "seeds": gain.seeds, "p": number(gain.p), "holm": number(p)}
                  for (entry, baseline, gain), p in zip(book.gains, corrected, strict=True)],
        "critical": [None, *(t_critical(freedom) for freedom in range(1, seeds))],  # by degrees of freedom
    }


def number(value: Any) -> float | None:
    """A value for JSON: 6 digits; None for what is not a finite number."""
    return float(f"{value:.6g}") if is_measurement(value) else None


def _entry(entry: Entry, book: Book):
    base, weighted = split_ea(entry.first.method)
    return {
        "number": entry.number, "label": entry.label, "short": entry.short, "method": entry.method,
        "base": base, "weighted": weighted, "pairs": book.pairs[entry.number], "metric": entry.metric,
        "device": str(entry.first.metadata.get("device")), "runs": [_run(run) for run in entry.runs],
        "weights": _weights(entry.runs) if weighted else None,
    }


def _run(run: RunRecord):
    metrics = _thinned(run.metrics())
    curves = {}
    for key in (f"test_{run.headline}", *CURVES):
        points = [(epoch, value) for epoch, (value,) in finite_points(metrics, key) if not math.isnan(value)]
        if points:
            curves[key] = {"x": [epoch for epoch, _ in points], "y": [number(value) for _, value in points]}
    return {"seed": run.seed, "last": run.result("last"), "best": run.result("best"), "curves": curves,
            "seconds": number(run.summary.get("wall_seconds")), "rate": number(run.rate)}


def _thinned(rows: Sequence, most: int = MOST_POINTS):
    step = -(-len(rows) // most)
    return rows[(len(rows) - 1) % step:: step] if rows else rows


def _weights(runs):
    """Histograms of the weights of traced images: percent in each bin, by seed and epoch. None without a trace."""
    traces = {run.seed: read_trace(run.path) for run in runs
              if run.kept is None and by_epoch(run.path / FOLDER, ".npz")}
    weights = {seed: [(epoch, trace[epoch]["weight"]) for epoch in _thinned(list(trace), MOST_HISTOGRAMS)]
               for seed, trace in traces.items()}
    weights = {seed: [(epoch, _usable(values)) for epoch, values in pairs] for seed, pairs in weights.items()}
    most = max((values.max() for pairs in weights.values() for _, values in pairs if values.size), default=0.0)
    if not most > 0:
        return None
    edges = np.linspace(0, most, BINS + 1)
    return {"edges": [number(edge) for edge in edges], "seeds": [
        {"seed": seed, "epochs": [epoch for epoch, _ in pairs],
         "mean": [number(values.mean()) if values.size else None for _, values in pairs],
         "shares": [_shares(values, edges) for _, values in pairs]}
        for seed, pairs in weights.items() if pairs
    ]}


def _usable(values):
    """The valid weights (n,) of an array of any shape and type; empty if it holds no numbers."""
    flat = np.ravel(values)
    flat = flat.astype(float) if flat.dtype.kind in "fiub" else np.zeros(0)
    return flat[(flat >= 0) & (flat <= LARGEST)]  # False for NaN


def _shares(values, edges):
    counts, _ = np.histogram(values, edges)
    return [round(100 * count / max(values.size, 1), 2) for count in counts.tolist()]
