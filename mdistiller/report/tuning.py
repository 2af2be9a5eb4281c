"""The report of a search for settings: budget, search space, best settings, sensitivity, test results."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mdistiller import markdown
from mdistiller.files import write_atomically
from mdistiller.report.compare import percent
from mdistiller.report.figures import pyplot
from mdistiller.report.significance import flip_text, interval_text, p_text
from mdistiller.runs.statistics import paired_gain

PLOT = "sensitivity.png"


class TrialRow(NamedTuple):
    """One trial: its number, settings, validation accuracy (None without one) and final state."""

    number: int
    settings: Mapping[str, Any]
    value: float | None
    state: str


def tuning_page(
    title: str, budget: str, space: Mapping[str, tuple[str, str]], trials: Sequence[TrialRow],
    final: Mapping[str, Mapping[int, float]],
) -> str:
    """Markdown. `space`: key -> (own value, range). `final`: "best" and "own" -> seed -> test result.

    Without "own" in `final`, the best settings are those of the configuration.
    """
    best = max((trial for trial in trials if trial.state == "complete"), key=lambda trial: trial.value)
    blocks = [f"# {title}", budget, "## Space and best settings"]
    rows = [(key, own, words, _shown(best.settings[key])) for key, (own, words) in space.items()]
    blocks += [markdown.table(("key", "configuration", "varied over", "best"), rows)]
    blocks += [f"Best trial: {best.number}, {best.value:.2f} on the validation images."]
    blocks += ["## Test images", _tested(final)]
    rows = [(str(trial.number), *(_shown(trial.settings.get(key)) for key in space),
             "" if trial.value is None else f"{trial.value:.2f}", trial.state) for trial in trials]
    blocks += ["## Sensitivity", f"![Accuracy on the validation images over each setting]({PLOT})"]
    blocks += [markdown.table(("trial", *space, "validation", "state"), rows)]
    blocks += ["A pruned trial was below the median, at the same epoch, of the trials that came to their end; its "
               "number is that of its last epoch."]
    return "\n\n".join(blocks) + "\n"


def _tested(final):
    if not any(final.values()):
        return "Not looked at: `tools/sweep.py --study` trains the best settings over fresh seeds."
    seeds = {label: f"{percent(values.values())} (seeds: {len(values)})" for label, values in final.items() if values}
    words = ("Looked at once, after the last trial, with fresh seeds, and with no training images set aside but those "
             "of the configuration's own DATASET.VAL_FRACTION.")
    if "own" not in final:
        return f"{words} The best settings are the configuration's own: {seeds['best']}."
    gain = paired_gain(final["best"], final["own"])
    words += f" Best settings: {seeds['best']}; the configuration's own: {seeds['own']}. Gain: {gain.mean:+.2f}"
    if math.isnan(gain.p):
        return f"{words}."
    flipped = flip_text(gain.differences)
    return (f"{words} (95 % interval {interval_text(gain.low, gain.high)}, p {p_text(gain.p)}"
            f"{flipped and f', exact sign-flip p {flipped}'}).")


def plot_sensitivity(path: Path, space: Mapping[str, bool], trials: Sequence[TrialRow]) -> None:
    """Validation accuracy over each setting, one panel per key; `space`: key -> whether its axis is logarithmic."""
    plt = pyplot()
    figure, axes = plt.subplots(1, len(space), figsize=(4 * len(space), 3.2), sharey=True, squeeze=False)
    for axis, (key, logarithmic) in zip(axes[0], space.items(), strict=True):
        for state, marker in (("complete", "o"), ("pruned", "x")):
            shown = [trial for trial in trials if trial.state == state and trial.value is not None]
            axis.plot([trial.settings[key] for trial in shown], [trial.value for trial in shown], marker, label=state)
        if logarithmic:
            axis.set_xscale("log")
        axis.set_xlabel(key)
    axes[0][0].set_ylabel("validation, percent")
    axes[0][0].legend()
    figure.tight_layout()
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=120))
    plt.close(figure)


def _shown(value):
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
