"""Measuring side by side: contestants take turns, several times; tables say medians and spread."""

import datetime
import json
import math
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from mdistiller.engine.run_folder import commit, device_name, versions
from mdistiller.files import write_atomically

MOST_CALLS = 2000  # of one contestant in one turn
PAIRS = (("resnet56", "resnet20"), ("wrn_40_2", "wrn_16_2"), ("resnet32x4", "resnet8x4"))


@dataclass(frozen=True)
class Settings:
    """How to measure, and on what."""

    root: str | None = None  # where CIFAR-100 lies; None: made-up images of its size
    device: torch.device = torch.device("cpu")
    repeats: int = 7  # turns of each contestant
    seconds: float = 1.5  # the least length of a turn
    batch: int = 64
    images: int = 2048  # that steps are measured on; the data pipeline is measured on all there are
    pairs: tuple[tuple[str, str], ...] = PAIRS
    quick: bool = False


@dataclass
class Contestant:
    """One of the things compared: `call` does one unit of work."""

    name: str
    call: Callable[[], object]
    lead: int = 1  # calls ahead of a turn that are not timed: batches that workers made meanwhile are used up
    settle: float = 0.0  # seconds to wait after a turn, until workers are idle again
    multiple: int = 1  # calls of a turn come in multiples of it: some do the work of several
    finish: Callable[[], object] = lambda: None  # called when all turns are over


@dataclass
class Table:
    """Rows of text for the reader, and the seconds they come from."""

    title: str
    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, list[float]] = field(default_factory=dict)  # per call, of each turn

    def markdown(self) -> str:
        lines = [f"### {self.title}", "", _row(self.columns), _row(["---"] * len(self.columns))]
        return "\n".join([*lines, *map(_row, self.rows), *(f"\n{note}" for note in self.notes)])


def _row(cells):
    return f"| {' | '.join(cells)} |"


def take_turns(contestants: Sequence[Contestant], settings: Settings) -> dict[str, list[float]]:
    """{name: seconds of a call in each turn}. A turn has as many calls as fill `settings.seconds`, at least one.

    The first of a round is another one each time, so that no contestant always follows the same one.
    """
    try:
        return _take_turns(contestants, settings)
    finally:
        for one in contestants:
            one.finish()


def _take_turns(contestants, settings):
    calls = {}
    for one in contestants:
        _timed(one, 1, settings.device)  # first calls are slow
        seconds = _timed(one, one.multiple, settings.device) / one.multiple
        number = math.ceil(settings.seconds / max(seconds, 1e-9) / one.multiple) * one.multiple
        calls[one.name] = max(one.multiple, min(number, MOST_CALLS // one.multiple * one.multiple))
    seconds = {one.name: [] for one in contestants}
    for turn in range(settings.repeats):
        first = turn % len(contestants)
        for one in (*contestants[first:], *contestants[:first]):
            seconds[one.name].append(_timed(one, calls[one.name], settings.device) / calls[one.name])
    return seconds


def _timed(one, calls, device):
    for _ in range(one.lead):
        one.call()
    synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        one.call()
    synchronize(device)
    elapsed = time.perf_counter() - start
    time.sleep(one.settle)
    return elapsed


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).synchronize()


def spread(values: Sequence[float], scale: float = 1.0, digits: int = 2) -> str:
    """The median, and the least and the greatest value: "1.31 [1.28, 1.35]"."""
    middle, low, high = (scale * value for value in (statistics.median(values), min(values), max(values)))
    return f"{middle:,.{digits}f} [{low:,.{digits}f}, {high:,.{digits}f}]"


def rates(seconds: Sequence[float], images: int) -> str:
    """Images a second, of seconds per call on `images` images."""
    return spread([images / value for value in seconds], digits=0)


def ratios(seconds: Sequence[float], reference: Sequence[float], digits: int = 2) -> str:
    """How many times as fast as the reference, turn by turn."""
    return spread([slow / fast for slow, fast in zip(reference, seconds, strict=True)], digits=digits)


# --- records ------------------------------------------------------------------------------------------------------


def machine(settings: Settings, source: str) -> dict:
    """What the numbers depend on besides the code."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device_name(settings.device),
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "versions": versions(),
        "commit": commit(),
        "images": source,
        "settings": {key: str(value) if key == "device" else value for key, value in asdict(settings).items()},
    }


def _processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def markdown(facts: dict, tables: Sequence[Table]) -> str:
    """All tables below a paragraph that says where the numbers come from."""
    made_up = "" if facts["images"].startswith("CIFAR") else " **Made-up images stand in for CIFAR-100.**"
    busy = f", load {facts['load_before']} when it began" if facts["load_before"] is not None else ""
    torch_version = facts["versions"].get("torch", torch.__version__)
    head = (
        f"Measured {facts['date']} with `python tools/{facts['command']}` on {facts['processor']}, {facts['cores']} "
        f"cores, {facts['threads']} threads, {facts['device']}{busy}; PyTorch {torch_version}; {facts['images']}; "
        f"commit {(facts['commit'] or 'unknown')[:12]}.{made_up} Cells are medians [least, greatest] over "
        f"{facts['settings']['repeats']} turns; times as fast are of the same turn."
    )
    return "\n\n".join([head, *(table.markdown() for table in tables)]) + "\n"


def save(folder: Path, facts: dict, tables: Sequence[Table]) -> tuple[Path, Path]:
    """Write bench.md and bench.json; returns their paths."""
    text = json.dumps({"machine": facts, "tables": [asdict(table) for table in tables]}, indent=1)
    for name, content in (("bench.md", markdown(facts, tables)), ("bench.json", text + "\n")):
        write_atomically(folder / name, lambda file, content=content: file.write(content.encode()))
    return folder / "bench.md", folder / "bench.json"
