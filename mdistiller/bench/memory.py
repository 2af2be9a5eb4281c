"""Peak memory of a few training steps, each variant in a separate process."""

import multiprocessing
import resource
import sys
import threading
from pathlib import Path

import torch

from mdistiller.bench.cases import cache_folder
from mdistiller.bench.measure import Settings, Table
from mdistiller.bench.ours import OurStep, make_data, make_teacher, read_source
from mdistiller.bench.reference import ReferenceStep, reference_batches
from mdistiller.data.memory import ImageSource
from mdistiller.models import build_model

STEPS, QUICK_STEPS = 20, 3
SECONDS_BETWEEN_LOOKS = 0.05
KINDS = {"plain": "plain", "live": "ours, teacher live", "cached": "ours, cache filling"}
MB = 1e6


def bench_memory(settings: Settings, source: ImageSource) -> list[Table]:
    """Peak memory of EA-KD on all training images: of the process with its workers, and of the GPU if there is one."""
    del source  # each process reads its own
    table = Table(
        f"Memory: EA-KD {' -> '.join(settings.pairs[0])}, batch {settings.batch}, peak in MB",
        ["", "host, with workers", "device"],
        notes=["Memory pages that several processes share are counted once, if Linux reports them."],
    )
    context = multiprocessing.get_context("spawn")
    for kind, name in KINDS.items():
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_measure, args=(sender, kind, settings))
        process.start()
        sender.close()
        try:
            cpu, device = receiver.recv()
        except EOFError:
            raise RuntimeError(f"the process that measures the memory of {name!r} has died") from None
        finally:
            process.join()
        table.rows.append([name, f"{cpu / MB:,.0f}", f"{device / MB:,.0f}" if device else "none"])
    return [table]


def _measure(sender, kind, settings):
    peak, done = [0], threading.Event()

    def look():
        while not done.is_set():
            peak[0] = max(peak[0], tree_bytes())
            done.wait(SECONDS_BETWEEN_LOOKS)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    with cache_folder() as folder:
        _run_steps(kind, read_source(settings)[0], settings, folder)
        done.set()
        watcher.join()
    device = torch.cuda.max_memory_allocated(settings.device) if settings.device.type == "cuda" else 0
    sender.send((peak[0] or _peak_of_process(), device))


def _run_steps(kind, source, settings, folder):
    pair, device = settings.pairs[0], settings.device
    if kind == "plain":
        student, teacher = (build_model(name, source.num_classes) for name in reversed(pair))
        step = ReferenceStep(reference_batches(source, settings.batch, device), student, teacher, device, ea=True)
    else:
        data = make_data(source, settings)
        del source  # as in a run: the data set keeps its own copy
        teacher, cache = make_teacher(pair[0], data, settings), folder if kind == "cached" else None
        step = OurStep(data, teacher, pair, "EA-KD", settings, cache=cache, warm=False)
    for _ in range(QUICK_STEPS if settings.quick else STEPS):
        step()


def tree_bytes() -> int:
    """Bytes used by this process and its children, shared pages divided among their users; 0 if unknown."""
    me = Path("/proc/self")
    try:
        children = [pid for task in (me / "task").iterdir() for pid in (task / "children").read_text().split()]
        return sum(_proportional(Path("/proc") / pid) for pid in ("self", *children))
    except OSError:
        return 0


def _proportional(process):
    try:
        lines = (process / "smaps_rollup").read_text().splitlines()
    except OSError:  # the child has just ended
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def _peak_of_process():
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
