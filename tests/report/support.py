"""Synthetic run folders from a cell's configuration, with given numbers."""

import json
from pathlib import Path

import yaml

from mdistiller.config.stated import BASE
from mdistiller.runs.paper import load_tables
from mdistiller.runs.training import Training

REPOSITORY = Path(__file__).resolve().parents[2]
PAIR = "res32x4_res8x4"


def nested(flat):
    tree = {}
    for key, value in flat.items():
        *nodes, leaf = key.split(".")
        node = tree
        for name in nodes:
            node = node.setdefault(name, {})
        node[leaf] = value
    return tree


def make_run(
    root, row, seed, last, best=None, *, table="2", column=PAIR, name=None, status="done", metadata=(), **changed
):
    """A run folder of a cell; `changed` are config keys with "__" for dots, `metadata` go into run.json."""
    cell = load_tables()[table].cells[row, column]
    training = Training.of_cell(cell)
    changed = {key.replace("__", "."): value for key, value in changed.items()}
    config = {**BASE, **training.settings, **changed, "EXPERIMENT.SEED": seed}
    folder = Path(root) / "any" / (name or f"{len(list(Path(root).glob('any/*')))}")  # an uninformative name
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(nested(config)))
    run = {"seed": seed, "overridden": {}, "teacher_sha256": "a" * 64, "teacher_top1": 79.42, **dict(metadata)}
    (folder / "run.json").write_text(json.dumps(run))
    best = last if best is None else best
    summary = {"status": status, "epoch": 240, "last_top1": last, "best_top1": best, "wall_seconds": 60.0, "seed": seed}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def make_runs(root, row, values, **said):
    """One run per seed 0, 1, ... with the given top-1 of the last epoch."""
    return [make_run(root, row, seed, value, **said) for seed, value in enumerate(values)]
