"""MLD, whose random views never repeat, from a replay store: its steps, and a sweep that shares one store."""

import statistics

from mdistiller.bench.cases import cache_folder
from mdistiller.bench.measure import Contestant, Settings, Table, ratios, spread, take_turns
from mdistiller.bench.ours import OurStep, make_data, make_teacher, shortened
from mdistiller.bench.scale import add_runs
from mdistiller.data.memory import ImageSource
from mdistiller.registry import ea_name

REPLAY = {"TEACHER_CACHE.KIND": "replay"}
TOPK = 10
METHODS = ("MLD", ea_name("MLD"))
LINES = tuple((method, standardized) for standardized in (False, True) for method in METHODS)
SEEDS = 3


def bench_replay(settings: Settings, source: ImageSource) -> list[Table]:
    """Steps of MLD with a live teacher and from a replay store, and a sweep of four lines and three seeds."""
    table, share = _steps(settings, source)
    return [table, _sweep(settings, source, share)]


def _steps(settings, source):
    """The table of steps, and the time from the store over that of a live teacher for the first pair."""
    table = Table(
        f"Replay: time of a step of MLD, batch {settings.batch}",
        ["teacher -> student", "method", "live, ms", "replay, ms", f"replay, TOPK {TOPK}, ms",
         "student's own two passes, ms", "replay, times as fast as live", "replay / own passes"],
        notes=["The student's own two passes are a training step by cross-entropy on the same two views, without a "
               "teacher: the floor."],
    )
    source, shares = shortened(source, settings.images), []
    data = make_data(source, settings)
    for pair in settings.pairs:
        teacher = make_teacher(pair[0], data, settings)
        with cache_folder() as folder:
            for method in METHODS:
                steps = _contestants(data, teacher, pair, method, settings, folder)
                seconds = take_turns([Contestant(name, step) for name, step in steps.items()], settings)
                table.rows.append([
                    " -> ".join(pair), method, *(spread(seconds[name], 1e3, 1) for name in steps),
                    ratios(seconds["replay"], seconds["live"]), ratios(seconds["own"], seconds["replay"], 3),
                ])
                table.seconds |= {f"{', '.join(pair)}, {method}, {name}": values for name, values in seconds.items()}
                shares.append(statistics.median(seconds["replay"]) / statistics.median(seconds["live"]))
    return table, shares[0]


def _contestants(data, teacher, pair, method, settings, folder):
    """Steps of MLD with a live teacher, from two warm stores, and of its student alone on the same two views."""
    live = OurStep(data, teacher, pair, method, settings)
    replay = OurStep(data, teacher, pair, method, settings, cache=folder, **REPLAY)
    topk = OurStep(data, teacher, pair, method, settings, cache=folder, **REPLAY, **{"TEACHER_CACHE.TOPK": TOPK})
    own = OurStep(data, teacher, pair, "NONE", settings)
    own.trainer.distiller.views = live.trainer.distiller.views
    return {"live": live, "replay": replay, "topk": topk, "own": own}


def _sweep(settings, source, share):
    """The time of the runs of a sweep with a shared store and with a live teacher, measured once."""
    images, epochs, seeds = (128, 1, 2) if settings.quick else (min(settings.images, 512), 2, SEEDS)
    pair, source, runs = settings.pairs[0], shortened(source, images), len(LINES) * seeds
    expected = (1 + (runs - 1) * share) / runs
    table = Table(
        f"Replay: {len(LINES)} lines and {seeds} seeds that share a store, {' -> '.join(pair)}, {images} images, "
        f"{epochs} epochs each, measured once",
        ["seed", "line", "rows found, %", "seconds", "seconds with a live teacher", "all so far, times as fast"],
        notes=[
            "All runs have the same DATASET.SEED. The first run computes every row while it trains, the others only "
            f"read: the teacher runs in 1 of {runs} runs. Calculated from the steps above, the sweep should take (1 + "
            f"{runs - 1} x {share:.2f}) / {runs} = {expected:.2f} of the time with a live teacher, {1 / expected:.2f} "
            "times as fast."
        ],
    )
    data = make_data(source, settings, **{"DATASET.SEED": 0})
    teacher = make_teacher(pair[0], data, settings)
    with cache_folder() as folder:
        for seed in range(seeds):
            for method, standardized in LINES:
                options = {"EXPERIMENT.SEED": seed, "DISTILLER.LS": standardized}
                step = OurStep(data, teacher, pair, method, settings, cache=folder, warm=False, **REPLAY, **options)
                live = OurStep(data, teacher, pair, method, settings, **options)
                add_runs(table, seed, method + " with LS" * standardized, step, live, epochs, settings)
    return table
