"""The benchmarks data, step, ea and cache. Each function takes settings and an image source, and returns tables."""

import dataclasses
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn

from mdistiller.bench.measure import Contestant, Settings, Table, rates, ratios, spread, take_turns
from mdistiller.bench.ours import OurStep, Steps, endless, make_data, make_teacher, shortened
from mdistiller.bench.reference import PREFETCH, WORKERS, StepApart, reference_batches
from mdistiller.data.images import NUM_VIEWS
from mdistiller.data.memory import ImageSource, InMemoryData
from mdistiller.engine.cache.teacher_cache import LOOK_AHEAD, in_bytes
from mdistiller.registry import ea_name, split_ea

SETTLE = 0.3  # seconds for the reference's workers to prepare batches
SHORT = 6  # factor of the number of turns; each turn is shorter by the same factor
EA_COLUMNS = ("method", "ms a step without", "step with / without", "weights and their record, ms", "of the step, %")
EA_BASELINES = ("KD", "DKD", "MLD", "REVIEWKD", "CTKD", "TTM")


@contextmanager
def cache_folder() -> Iterator[Path]:
    """A temporary folder for teacher caches."""
    with tempfile.TemporaryDirectory(prefix="bench_cache_") as folder:
        yield Path(folder)


def bench_data(settings: Settings, source: ImageSource) -> list[Table]:
    """Only batches of augmented, normalised images: one view, and the two views of MLD."""
    data, lead = make_data(source, settings), WORKERS * PREFETCH + 1
    contestants, device = [], settings.device
    for views, strong in ((("image",), False), (("image", "image_strong"), True)):
        ours, plain = endless(data, views), reference_batches(source, settings.batch, device, strong)
        contestants += [
            Contestant(f"ours{strong}", lambda stream=ours: next(stream)),
            Contestant(f"plain{strong}", lambda stream=plain: [part.to(device) for part in next(stream)], lead, SETTLE),
        ]
    seconds = take_turns(contestants, settings)
    table = Table(
        f"Data: images a second at batch {settings.batch}",
        ["views", f"PIL, {WORKERS} workers", "ours, in the main process", "times as fast"], seconds=seconds,
    )
    for views, strong in (("crop and flip", False), ("and the strong view of MLD", True)):
        ours, plain = seconds[f"ours{strong}"], seconds[f"plain{strong}"]
        table.rows.append([views, rates(plain, settings.batch), rates(ours, settings.batch), ratios(ours, plain, 1)])
    return [table]


@dataclasses.dataclass(frozen=True)
class Case:
    """The common settings of the compared training steps; `folder` is for the cache."""

    pair: tuple[str, str]
    method: str
    source: ImageSource
    data: InMemoryData
    teacher: nn.Module
    settings: Settings
    folder: Path

    def contestants(self, *kinds: str) -> list[Contestant]:
        """Steps of these kinds: "plain", "live", "folded", "cached" and "alone" (the student without a teacher)."""
        return [self._plain() if kind == "plain" else Contestant(kind, self._ours(kind)) for kind in kinds]

    def _plain(self):
        teacher = {key: value.cpu().contiguous() for key, value in self.teacher.state_dict().items()}
        ea, settings = split_ea(self.method)[1], self.settings
        step = StepApart(self.source, self.pair, teacher, settings.batch, settings.device, ea)
        return Contestant("plain", step, settle=SETTLE, finish=step.finish)

    def _ours(self, kind):
        method = "NONE" if kind == "alone" else self.method
        cache = self.folder if kind == "cached" else None
        options = {"DISTILLER.FOLD_TEACHER": kind == "folded"}
        return OurStep(self.data, self.teacher, self.pair, method, self.settings, cache=cache, **options)


def bench_step(settings: Settings, source: ImageSource) -> list[Table]:
    """Training steps of KD and EA-KD: the reference, ours with a live and a cached teacher, and the student alone."""
    fast = Table(
        f"Step: times as fast as the plain path, batch {settings.batch}",
        ["teacher -> student", "method", "teacher live", "live, folded", "from the cache", "cached / student alone"],
        notes=[
            "The plain path runs its teacher in every step, in a separate process with the default memory allocator. "
            "The last column is the time of a step with stored logits divided by that of the student alone, trained "
            "with cross-entropy, which is the lower bound."
        ],
    )
    columns = ["teacher -> student", "method", "plain", "live", "live, folded", "from the cache", "student alone"]
    rate = Table(f"Step: images a second, batch {settings.batch}", columns)
    source = shortened(source, settings.images)
    data = make_data(source, settings)
    for pair in settings.pairs:
        teacher = make_teacher(pair[0], data, settings)
        for method in ("KD", "EA-KD"):
            with cache_folder() as folder:
                case = Case(pair, method, source, data, teacher, settings, folder)
                seconds = take_turns(case.contestants("plain", "live", "folded", "cached", "alone"), settings)
            name = [" -> ".join(pair), method]
            speedups = [ratios(seconds[kind], seconds["plain"]) for kind in ("live", "folded", "cached")]
            fast.rows.append([*name, *speedups, ratios(seconds["alone"], seconds["cached"], 3)])
            rate.rows.append([*name, *(rates(values, settings.batch) for values in seconds.values())])
            rate.seconds |= {f"{', '.join(name)}, {kind}": values for kind, values in seconds.items()}
    return [fast, rate]


def bench_ea(settings: Settings, source: ImageSource) -> list[Table]:
    """The additional time for sample weights: from whole steps, and from the computation of the weights alone."""
    table = Table(
        f"EA: time of a step with sample weights over one without, live teacher, batch {settings.batch}",
        list(EA_COLUMNS), notes=[short_turns(settings)],
    )
    source, pair = shortened(source, settings.images), settings.pairs[0]
    data = make_data(source, settings)
    teacher = make_teacher(pair[0], data, settings)
    for baseline in EA_BASELINES:
        plain, weighted = (OurStep(data, teacher, pair, name, settings) for name in (baseline, ea_name(baseline)))
        seconds = time_weights(plain, weighted, settings.batch, data.info.num_classes, settings)
        table.rows.append([baseline, *weight_cells(seconds, len(weighted.trainer.distiller.views))])
        table.seconds |= {f"{baseline}, {name}": values for name, values in seconds.items()}
    return [table]


def short_turns(settings: Settings) -> str:
    """The note below a table of `EA_COLUMNS`."""
    return (f"{SHORT * settings.repeats} short turns each. The time of the weights alone is more reliable: on a busy "
            "machine two equal steps differ by more than the weights take.")


def time_weights(plain: Steps, weighted: Steps, samples: int, classes: int, settings: Settings) -> dict:
    """Seconds of steps without and with sample weights, and of the part of both that depends on weighting.

    In short turns, so that slow changes of the machine's load affect both variants equally.
    """
    settings = dataclasses.replace(settings, repeats=SHORT * settings.repeats, seconds=settings.seconds / SHORT)
    both = {"plain": plain, "weighted": weighted}
    seconds = {}
    for part, calls in (("step", both), ("weights", {name: _weighing(step, samples, classes, settings.device)
                                                     for name, step in both.items()})):
        found = take_turns([Contestant(name, call) for name, call in calls.items()], settings)
        seconds |= {f"{part}, {name}": values for name, values in found.items()}
    return seconds


def weight_cells(seconds: dict, views: int = 1) -> list[str]:
    """The cells of `EA_COLUMNS` after the first, from `time_weights`; weights are computed once for each view."""
    plain, weighted = seconds["step, plain"], seconds["step, weighted"]
    extra = [more - less for more, less in zip(seconds["weights, weighted"], seconds["weights, plain"], strict=True)]
    share = 100 * views * statistics.median(extra) / statistics.median(plain)
    return [spread(plain, 1e3, 1), ratios(plain, weighted, 4), spread(extra, 1e3 * views, 3), f"{share:.2f}"]


def _weighing(step, samples, classes, device):
    """The part of a step that depends on weighting: computing the weights of a batch and adding them to the meters."""
    trainer = step.trainer
    logits = torch.randn(2, samples, classes, device=device)
    losses = {"ce": logits.mean()}
    distiller, meters = trainer.distiller, type(trainer.meters)(1, device)
    progress = distiller.task.progress(logits[0], torch.zeros(samples, dtype=torch.long, device=device))

    def call():
        distiller.monitor = {}
        distiller.sample_weight(*logits)
        meters.write(0, meters.row(losses, samples, progress, distiller.monitor), samples)

    return call


def bench_cache(settings: Settings, source: ImageSource) -> list[Table]:
    """EA-KD with a live teacher, while a cache fills, and with a full cache; also the time of a look-up."""
    source, pair, method = shortened(source, settings.images), settings.pairs[0], "EA-KD"
    data = make_data(source, settings)
    teacher = make_teacher(pair[0], data, settings)
    with cache_folder() as folder:
        def ours(dtype="float16", **options):
            return OurStep(data, teacher, pair, method, settings, **{"TEACHER_CACHE.DTYPE": dtype}, **options)

        filling = ours(cache=folder / "filling", warm=False, epochs=None)
        warm = {dtype: ours(dtype, cache=folder / dtype) for dtype in ("float16", "float32")}
        seconds = take_turns(
            [
                Contestant("teacher live", ours(), multiple=LOOK_AHEAD),
                Contestant("cache filling, float16", filling, multiple=LOOK_AHEAD),
                *(Contestant(f"cache full, {dtype}", step, multiple=LOOK_AHEAD) for dtype, step in warm.items()),
                Contestant("student alone", OurStep(data, teacher, pair, "NONE", settings), multiple=LOOK_AHEAD),
            ],
            settings,
        )
        found = 100 * (1 - filling.cache.misses / filling.cache.lookups)
        lookup = Table(
            f"Cache: rows of {LOOK_AHEAD} batches of {settings.batch}, {data.info.num_classes} classes",
            ["dtype", "ms to look up", "bytes a row", "50,000 images, all views"],
        )
        for dtype, step in warm.items():
            lookup.seconds[dtype] = lookups(step, settings)
            size = step.cache.store.bytes
            whole = in_bytes(50000 * NUM_VIEWS * size)
            lookup.rows.append([dtype, spread(lookup.seconds[dtype], 1e3, 3), str(size), whole])
    table = Table(
        f"Cache: {method} {' -> '.join(pair)}, batch {settings.batch}",
        ["", "images a second", "times as fast as live"],
        notes=[f"{found:.1f} % of the rows were found while the cache filled."], seconds=seconds,
    )
    for name, values in seconds.items():
        table.rows.append([name, rates(values, settings.batch), ratios(values, seconds["teacher live"])])
    return [table, lookup]


def lookups(step: OurStep, settings: Settings) -> list[float]:
    """Seconds per look-up of the rows of LOOK_AHEAD batches, as in training."""
    pairs = list(step.trainer.data.train_views(1))[:LOOK_AHEAD]
    index, view = (np.concatenate(arrays) for arrays in zip(*pairs, strict=True))
    return take_turns([Contestant("lookup", lambda: step.cache.logits(index, view))], settings)["lookup"]
