"""Timing of several variants that take turns, and tables with medians and ranges."""

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
from mdistiller.files import write_text
from mdistiller.markdown import table

MOST_CALLS = 2000  # largest number of calls in one turn
CLOCKS = {"wall": time.perf_counter, "process": time.process_time}
PAIRS = (("resnet56", "resnet20"), ("wrn_40_2", "wrn_16_2"), ("resnet32x4", "resnet8x4"))


@dataclass(frozen=True)
class Settings:
    """The settings of a benchmark."""

    root: str | None = None  # folder of CIFAR-100; None: random images of the same size
    device: torch.device = torch.device("cpu")
    repeats: int = 7  # turns of each variant
    seconds: float = 1.5  # minimum length of a turn
    batch: int = 64
    images: int = 2048  # training images used for steps; the data pipeline uses all images
    pairs: tuple[tuple[str, str], ...] = PAIRS
    quick: bool = False
    clock: str = "wall"  # a name of `CLOCKS`; "process" counts the processor time of this process alone
    checkout: str | None = None  # folder of the public mdistiller code base


@dataclass
class Contestant:
    """One of the compared variants; `call` does one unit of work."""

    name: str
    call: Callable[[], object]
    lead: int = 1  # calls before a turn that are not timed; they use up batches that workers have already prepared
    settle: float = 0.0  # seconds to wait after a turn until workers are idle
    multiple: int = 1  # the number of calls in a turn is a multiple of this, for calls that work for several steps
    finish: Callable[[], object] = lambda: None  # called after all turns


@dataclass
class Table:
    """A table of text with the measured seconds."""

    title: str
    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, list[float]] = field(default_factory=dict)  # seconds per call in each turn

    def markdown(self) -> str:
        lines = [f"### {self.title}", "", table(self.columns, self.rows)]
        return "\n".join([*lines, *(f"\n{note}" for note in self.notes)])


def take_turns(contestants: Sequence[Contestant], settings: Settings) -> dict[str, list[float]]:
    """{name: seconds per call in each turn}. A turn has enough calls to fill `settings.seconds`, at least one.

    Each round begins with another variant, so that none always runs after the same one.
    """
    try:
        return _take_turns(contestants, settings)
    finally:
        for one in contestants:
            one.finish()


def _take_turns(contestants, settings):
    calls = {}
    for one in contestants:
        _timed(one, 1, settings)  # first calls are slow
        seconds = _timed(one, one.multiple, settings) / one.multiple
        number = math.ceil(settings.seconds / max(seconds, 1e-9) / one.multiple) * one.multiple
        calls[one.name] = max(one.multiple, min(number, MOST_CALLS // one.multiple * one.multiple))
    seconds = {one.name: [] for one in contestants}
    for turn in range(settings.repeats):
        first = turn % len(contestants)
        for one in (*contestants[first:], *contestants[:first]):
            seconds[one.name].append(_timed(one, calls[one.name], settings) / calls[one.name])
    return seconds


def _timed(one, calls, settings):
    clock = CLOCKS[settings.clock]
    for _ in range(one.lead):
        one.call()
    synchronize(settings.device)
    start = clock()
    for _ in range(calls):
        one.call()
    synchronize(settings.device)
    elapsed = clock() - start
    time.sleep(one.settle)
    return elapsed


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all work."""
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).synchronize()


def spread(values: Sequence[float], scale: float = 1.0, digits: int = 2) -> str:
    """The median, the smallest and the largest value as text: "1.31 [1.28, 1.35]"."""
    middle, low, high = (scale * value for value in (statistics.median(values), min(values), max(values)))
    return f"{middle:,.{digits}f} [{low:,.{digits}f}, {high:,.{digits}f}]"


def rates(seconds: Sequence[float], images: int) -> str:
    """Images per second, from seconds per call on `images` images."""
    return spread([images / value for value in seconds], digits=0)


def ratios(seconds: Sequence[float], reference: Sequence[float], digits: int = 2) -> str:
    """The speed relative to the reference, computed for each turn."""
    return spread([slow / fast for slow, fast in zip(reference, seconds, strict=True)], digits=digits)


# --- output -------------------------------------------------------------------------------------------------------


def machine(settings: Settings, source: str) -> dict:
    """The machine, software versions and settings of a measurement."""
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


def markdown(metadata: dict, tables: Sequence[Table]) -> str:
    """A paragraph about the machine and the settings (`metadata`, from `machine`), followed by all tables."""
    made_up = "" if metadata["images"].startswith("CIFAR") else " **Random images are used in place of CIFAR-100.**"
    busy = f", load {metadata['load_before']} when it began" if metadata["load_before"] is not None else ""
    torch_version = metadata["versions"].get("torch", torch.__version__)
    script = "python tools/" if metadata["command"].partition(" ")[0].endswith(".py") else ""  # installed: a command
    head = (
        f"Measured {metadata['date']} with `{script}{metadata['command']}` on {metadata['processor']}, "
        f"{metadata['cores']} cores, {metadata['threads']} threads, {metadata['device']}{busy}; "
        f"PyTorch {torch_version}; {metadata['images']}; "
        f"commit {(metadata['commit'] or 'unknown')[:12]}.{made_up} Cells are medians [smallest, largest] over "
        f"{metadata['settings']['repeats']} turns; ratios are computed for each turn."
    )
    if metadata["settings"].get("clock") == "process":
        head += " Times are the processor time of the measuring process, because other processes used the machine."
    return "\n\n".join([head, *(table.markdown() for table in tables)]) + "\n"


def save(folder: Path, metadata: dict, tables: Sequence[Table]) -> tuple[Path, Path]:
    """Write bench.md and bench.json; returns their paths."""
    text = json.dumps({"machine": metadata, "tables": [asdict(table) for table in tables]}, indent=1)
    for name, content in (("bench.md", markdown(metadata, tables)), ("bench.json", text + "\n")):
        write_text(folder / name, content)
    return folder / "bench.md", folder / "bench.json"
