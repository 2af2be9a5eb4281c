"""The project's own experiments (studies.yaml): their trainings and their tables. Does not import torch."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from mdistiller import markdown
from mdistiller.config.files import read_yaml
from mdistiller.config.stated import as_overrides
from mdistiller.places import HOME
from mdistiller.registry import Registry, ea_name
from mdistiller.report.compare import percent
from mdistiller.report.ranks import common_means, complete_blocks, rank_lines
from mdistiller.report.significance import (
    GAIN_HEAD,
    RESAMPLED_HEAD,
    RESAMPLED_WORDS,
    WORDS,
    count_words,
    gain_cells,
    resampled_row,
)
from mdistiller.runs.matching import fit
from mdistiller.runs.paper import DATA
from mdistiller.runs.records import RunRecord, group_runs
from mdistiller.runs.statistics import Gain, paired_gain, probability_of_improvement, rank_methods
from mdistiller.runs.training import Training

HEAD = ("method", "seeds", "last epoch", "best epoch", "compared with")
COMPARISON = ("method", "compared with", "seeds of both")


@dataclass(frozen=True)
class LineTraining(Training):
    """The training of a line; its run folders are named after the line."""

    label: str = ""

    @property
    def name(self) -> str:
        return re.sub(r"[^A-Za-z0-9.+]+", "_", self.label).strip("_").lower()


@dataclass(frozen=True)
class Line:
    """One configuration of a study. `baseline`: the name of the line that it is compared with, or None.

    `tuned`: the file of its best settings (tools/tune.py), without which it cannot be trained yet; None: not tuned.
    """

    name: str
    training: Training
    seeds: int
    baseline: str | None
    tuned: Path | None = None

    @property
    def ready(self) -> bool:
        """Whether the settings of the line are known."""
        return self.tuned is None or self.tuned.is_file()


@dataclass(frozen=True)
class Study:
    """A study: lines by section title and name; `words` describe the protocol.

    `comparisons`: title -> pairs of names of lines, of which the second is the baseline; or a mapping with
    such `pairs`, the `measure` that is compared instead of the headline metric, and the `factor` that it is shown by.
    `measures`: column header -> key of metrics.jsonl or of answers (`_measure`), for a table of further measurements of
    the last epoch. `ranks`: title -> kinds of method (`of`) that are ranked within each of the `blocks`, which name a
    line for each kind.
    """

    name: str
    title: str
    words: str
    sections: Mapping[str, Mapping[str, Line]]
    comparisons: Mapping[str, list | Mapping[str, Any]]
    measures: Mapping[str, str]
    ranks: Mapping[str, Mapping]

    @property
    def lines(self) -> dict[str, Line]:
        return {name: line for section in self.sections.values() for name, line in section.items()}


def load_studies(extra: tuple[str, ...] = (), tuned: bool = True) -> Registry:
    """All studies by name; lookup ignores case, an unknown name raises UserError. `extra`: overrides of all runs.

    Lines have their best settings where these are known; without `tuned`, they are as they were before they were tuned.
    """
    studies = Registry("study")
    for name, spec in read_yaml(DATA / "studies.yaml").items():
        sections = {section["title"]: _section(name, spec, section, extra, tuned) for section in spec["sections"]}
        further = (spec.get(key, {}) for key in ("comparisons", "measures", "ranks"))
        studies[name] = Study(name, spec["title"], spec["words"], sections, *further)
    return studies


def _section(study, spec, section, extra, tuned):
    lines = dict(section.get("lines", {}))
    for method, folder in section.get("pairs", {}).items():
        config, kind = f"configs/cifar100/{folder}/res32x4_res8x4.yaml", method.removesuffix("+LS")
        own = section.get("set_of", {}).get(method, {})
        lines[method] = {"config": config, "set": own}
        weighted = {"config": config, "baseline": method, "set": {**own, "DISTILLER.TYPE": ea_name(kind)}}
        lines[ea_name(method)] = weighted
        if section.get("normalized"):
            normalized = {**weighted["set"], "EA.KIND": "normalized"}
            lines[f"{ea_name(method)}, normalized"] = weighted | {"set": normalized}
    return {name: _line(study, spec, section, name, of, extra, tuned) for name, of in lines.items()}


def _line(study, spec, section, name, of, extra, tuned):
    teaching = {} if of.get("alone") else spec["teaching"]
    keys = {**spec["protocol"], **teaching, **section.get("set", {}), **of.get("set", {})}
    words = (f"{key}={json.dumps(value) if isinstance(value, list) else value}" for key, value in keys.items())
    training = LineTraining(of["config"], as_overrides(words), (f"EXPERIMENT.PROJECT={study}", *extra), label=name)
    folder = section.get("tuned")
    file = HOME / folder / f"{training.name}.yaml" if folder else None
    if tuned and file is not None and file.is_file():
        best = tuple(f"{key}={value}" for key, value in read_yaml(file).items())
        training = replace(training, overrides=(*training.overrides, *best))
    return Line(name, training, section["seeds"], of.get("baseline"), file)


def table(study: Study, runs: Iterable[RunRecord]) -> str:
    """Markdown with a table for each section, computed from finished runs; gains are paired by seed."""
    runs = list(runs)
    groups = {name: best_exact(runs, line) for name, line in study.lines.items()}
    blocks = [f"## {study.title}", study.words.strip(), WORDS]
    compared: dict[tuple, Gain | None] = {}  # by names and measure: one test, in however many tables it stands
    for title, lines in study.sections.items():
        pairs = [(line.name, line.baseline) for line in lines.values()]
        gains = [_gain(groups, *pair) for pair in pairs]
        compared |= {(*pair, None): gain for pair, gain in zip(pairs, gains, strict=True)}
        rows = [_row(line, groups) + cells for line, cells in zip(lines.values(), gain_cells(gains), strict=True)
                if groups[line.name]]
        missing = [line.name for line in lines.values() if not groups[line.name]]
        blocks += [f"### {title}", *_shown((*HEAD, *GAIN_HEAD), rows, missing)]
    if study.measures:
        rows = [_measured(name, found, study.measures) for name, found in groups.items() if found]
        head = ("method", *study.measures)
        blocks += ["### What else the last epoch measured (means over the seeds)", markdown.table(head, rows)]
    for title, spec in study.comparisons.items():
        pairs, of = (spec, None) if isinstance(spec, list) else (spec["pairs"], (spec["measure"], spec["factor"]))
        gains = [_gain(groups, *pair, of) for pair in pairs]
        compared |= {(*pair, of): gain for pair, gain in zip(pairs, gains, strict=True)}
        rows = [(*pair, str(gain.seeds), *cells)
                for pair, gain, cells in zip(pairs, gains, gain_cells(gains), strict=True) if gain]
        missing = [f"{name} over {baseline}" for (name, baseline), gain in zip(pairs, gains, strict=True) if not gain]
        head = GAIN_HEAD if of is None else ("difference, last epoch", *GAIN_HEAD[1:])  # less may be better
        blocks += [f"### {title}", *_shown((*COMPARISON, *head), rows, missing)]
    for title, ranked in study.ranks.items():
        blocks += [f"### {title}", *_ranked(ranked, groups)]
    return "\n\n".join([*blocks, *_tested(compared, groups)]) + "\n"


def _shown(head, rows, missing):
    """The table of the rows that there are, and a line that names the missing ones."""
    return [*([markdown.table(head, rows)] if rows else []), *([f"Missing: {'; '.join(missing)}."] if missing else [])]


def _tested(compared, groups):
    """Tests besides the t-tests, and how many t-tests remain significant after a correction over all tables."""
    compared = [(pair, gain, of) for (*pair, of), gain in compared.items() if gain]
    rows = [resampled_row(pair, gain, probability_of_improvement(*(_last(groups[name], of).values() for name in pair)))
            for pair, gain, of in compared]
    rows = [row for row in rows if row]
    blocks = ["### All tests together", count_words([gain.p for _, gain, _ in compared])]
    return [*blocks, RESAMPLED_WORDS, markdown.table(RESAMPLED_HEAD, rows)] if rows else blocks


def _ranked(ranked, groups):
    means = {names[0]: common_means({kind: _last(groups[name]) for kind, name in zip(ranked["of"], names, strict=True)})
             for names in ranked["blocks"]}
    whole, missing = complete_blocks(means)
    left_out = [f"Left out, for runs are missing: {'; '.join(missing)}."] if missing else []
    if len(whole) < 2:
        return ["Fewer than two blocks have runs of every method.", *left_out]
    head, rows, words = rank_lines(rank_methods(whole))
    return [words, markdown.table(head, rows), *left_out]


def best_exact(runs: list[RunRecord], line: Line) -> dict[int, RunRecord]:
    """Seed -> finished run of exactly this configuration."""
    same = [run for run in runs if line.ready and run.done and fit(run, line.training.settings) == ()]
    groups = sorted(group_runs(same), key=len, reverse=True)  # runs with other teacher weights form another group
    return {run.seed: run for run in groups[0]} if groups else {}


def _row(line: Line, groups) -> tuple[str, ...]:
    runs = groups[line.name]
    shown = [percent([run.result(epoch) for run in runs.values()]) for epoch in ("last", "best")]
    number = f"{len(runs)} of {max(len(runs), line.seeds)}"  # more may be trained than the study names
    return (line.name, number, *shown, line.baseline if groups.get(line.baseline) else "")


def _gain(groups, name: str, baseline: str | None, of: tuple[str, float] | None = None) -> Gain | None:
    """The gain of a line over another one; None where either has no runs. `of`: see `_last`."""
    if not (groups[name] and groups.get(baseline)):
        return None
    results = _last(groups[name], of), _last(groups[baseline], of)
    return paired_gain(*results) if all(results) else None


def _measured(name, runs, measures) -> tuple[str, ...]:
    found = ([_measure(run, key) for run in runs.values()] for key in measures.values())
    known = ([value for value in values if value is not None] for values in found)
    return (name, *(f"{fmean(values):.2f}" if values else "" for values in known))


def _measure(run: RunRecord, key: str) -> float | None:
    """A measurement of the last epoch, or Rouge-L of answers: "answers/<checkpoint>/<set>/<n-gram rule>"."""
    if not key.startswith("answers/"):
        return next((row.get(key) for row in reversed(run.metrics())), None)
    checkpoint, name, rule = key.split("/")[1:]
    scores = run.answers.get(checkpoint, {}).get(name, {}).get(rule)
    return scores and scores["rouge_l"]


def _last(runs: Mapping[int, RunRecord], of: tuple[str, float] | None = None) -> dict[int, Any]:
    """Results of the last epoch by seed. `of`: the key of another measure, which a run may lack, and its factor."""
    if of is None:
        return {seed: run.result("last") for seed, run in runs.items()}
    found = {seed: _measure(run, of[0]) for seed, run in runs.items()}
    return {seed: of[1] * value for seed, value in found.items() if value is not None}
