"""Archive finished runs of a study without weights, in the two files that `mdistiller.runs.kept` reads."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from mdistiller.config.files import read_yaml
from mdistiller.errors import UserError, writing
from mdistiller.files import alone_in, csv_text, write_text
from mdistiller.runs.kept import METRICS, RUNS, read_kept, read_kept_metrics
from mdistiller.runs.records import RunRecord, archived_run, group_runs

OF_THE_MACHINE = ("host", "package", "teacher_checkpoint", "teacher_cache", "sessions")  # not archived


def keep_records(runs: Iterable[RunRecord], folder: Path) -> int:
    """Add finished runs to the two files in `folder`; returns their number. Several processes may add at once.

    Of runs of one name, those in the archive included, the one that was started last is kept. What a copy of it alone
    has (its metrics, scores of its answers) is kept too, since parts of a folder may stay on another machine. Entries
    of run.json that identify the machine are left out. Raises UserError for runs of one name that differ in
    configuration, seed or data, for a name that a line of text cannot hold, for a folder that contains the runs
    themselves, and for a path where no file can be written; RunError when the disk is full. The files are then left
    unchanged.
    """
    named: dict[str, list[RunRecord]] = {}
    for run in (run for run in runs if run.done):
        if (folder / run.path.name).resolve() != run.path.resolve():
            named.setdefault(run.path.name, []).append(run)
        elif run.kept is None:
            raise UserError(f"{run.path}: cannot be archived into its own folder; choose another folder")
    for name, (run, *_) in named.items():
        if not name.isprintable():
            raise UserError(f"{str(run.path)!r}: cannot be archived: its name holds control characters or bytes that "
                            "are no UTF-8; rename the folder")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with alone_in(folder):
        _add(named, folder)
    return len(named)


def _add(named, folder):
    """Add {name: copies of a run} to the two files."""
    rows = read_kept(folder / RUNS) if (folder / RUNS).is_file() else {}
    metrics = read_kept_metrics(folder / METRICS)
    for name, copies in named.items():
        there = [archived_run(folder / RUNS, name, rows[name])] if name in rows else []
        run = _started_last([*copies, *there])
        same = [copy for copy in [*copies, *there] if copy.summary == run.summary]
        rows[name] = _row(run) | _answers(same)
        metrics[name] = max((metrics.get(name, []) if copy in there else copy.metrics() for copy in same), key=len)
    write_text(folder / METRICS, _csv(metrics))
    write_text(folder / RUNS, "".join(json.dumps(rows[name]) + "\n" for name in sorted(rows)))


def _started_last(copies: Sequence[RunRecord]) -> RunRecord:
    """The one of these runs of one name that is archived. Raises UserError where they are not one and the same run."""
    first, *others = (run for seeds in group_runs(copies) for run in seeds)
    if others:
        raise UserError(f"{first.path} and {others[0].path}: two runs of the same name, which differ in configuration, "
                        "seed or data, cannot be in one archive; rename a run's folder, or use two archives")
    return first


def _row(run):
    metadata = {key: value for key, value in run.metadata.items() if key not in OF_THE_MACHINE}
    config = read_yaml(run.path / "config.yaml") if run.kept is None else run.kept["config"]
    return {"name": run.path.name, "config": config, "summary": dict(run.summary), "run": metadata}


def _answers(copies):
    """{"answers": scores by checkpoint and set} of all copies; those of the first one precede. {} if none has any."""
    found: dict[str, dict] = {}
    for copy in reversed(copies):
        for checkpoint, sets in copy.answers.items():
            found.setdefault(checkpoint, {}).update(sets)
    return {"answers": found} if found else {}


def _csv(metrics):
    columns = dict.fromkeys(key for name in sorted(metrics) for row in metrics[name] for key in row)
    return csv_text(["run", *columns], ({"run": name, **row} for name in sorted(metrics) for row in metrics[name]))
