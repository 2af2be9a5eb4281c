"""Dependence of the time on the number of images, classes, batch size, and runs that share a cache."""

import dataclasses

from mdistiller.bench.cases import Case, cache_folder, lookups
from mdistiller.bench.measure import (
    CLOCKS,
    Contestant,
    Settings,
    Table,
    rates,
    ratios,
    spread,
    synchronize,
    take_turns,
)
from mdistiller.bench.ours import OurStep, make_data, make_teacher, shortened
from mdistiller.data.images import NUM_VIEWS
from mdistiller.data.memory import ImageSource
from mdistiller.engine.cache.teacher_cache import LOOK_AHEAD

SWEEP = ("KD", "EA-KD", "DKD", "EA-DKD")


def bench_scale(settings: Settings, source: ImageSource) -> list[Table]:
    """Times by number of images, classes and batch size, of runs that share a cache, and the passes that these save."""
    return [
        _scale_images(settings, source), _scale_classes(settings, source), _scale_batch(settings, source),
        *_scale_runs(settings, source),
    ]


def _scale_images(settings, source):
    table = Table(
        f"Scale: images of an epoch, data alone, batch {settings.batch}",
        ["images", "to the first batch, ms", "an epoch, s", "images a second"],
    )
    for number in sorted({min(number, len(source.train_images)) for number in (1000, 5000, 20000, 50000)}):
        data = make_data(shortened(source, number), settings)
        seconds = take_turns(
            [
                Contestant("first", lambda data=data: next(data.train_batches(1))),
                Contestant("epoch", lambda data=data: sum(1 for _ in data.train_batches(1))),
            ],
            settings,
        )
        table.rows.append([
            f"{number:,}", spread(seconds["first"], 1e3), spread(seconds["epoch"]), rates(seconds["epoch"], number),
        ])
        table.seconds |= {f"{number}, {name}": values for name, values in seconds.items()}
    return table


def _scale_classes(settings, source):
    table = Table(
        f"Scale: classes, EA-KD {' -> '.join(settings.pairs[0])} from the cache, batch {settings.batch}",
        ["classes", "ms a step", "step with / without EA", f"ms to look up {LOOK_AHEAD} batches, float16"],
    )
    for classes in (10, 100, 1000):
        data = make_data(shortened(source, settings.images, classes), settings)
        teacher = make_teacher(settings.pairs[0][0], data, settings)
        with cache_folder() as folder:
            steps = {
                method: OurStep(data, teacher, settings.pairs[0], method, settings, cache=folder)
                for method in ("KD", "EA-KD")
            }
            seconds = take_turns([Contestant(name, step) for name, step in steps.items()], settings)
            lookup = lookups(steps["KD"], settings)
        table.rows.append([
            f"{classes:,}", spread(seconds["EA-KD"], 1e3, 1), ratios(seconds["KD"], seconds["EA-KD"], 3),
            spread(lookup, 1e3, 3),
        ])
        table.seconds |= {f"{classes}, {name}": values for name, values in seconds.items()}
    return table


def _scale_batch(settings, source):
    pair = settings.pairs[0]
    table = Table(
        f"Scale: batch, EA-KD {' -> '.join(pair)}, images a second",
        ["batch", "plain", "ours, live", "times as fast", "from the cache", "times as fast"],
    )
    source = shortened(source, settings.images)
    for batch in (16, 64, 256):
        now = dataclasses.replace(settings, batch=batch)
        data = make_data(source, now)
        teacher = make_teacher(pair[0], data, now)
        with cache_folder() as folder:
            case = Case(pair, "EA-KD", source, data, teacher, now, folder)
            seconds = take_turns(case.contestants("plain", "live", "cached"), now)
        plain = seconds["plain"]
        row = [str(batch), rates(plain, batch)]
        for name in ("live", "cached"):
            row += [rates(seconds[name], batch), ratios(seconds[name], plain)]
        table.rows.append(row)
        table.seconds |= {f"{batch}, {name}": values for name, values in seconds.items()}
    return table


def _scale_runs(settings, source):
    """The time of consecutive runs of a sweep with and without a shared cache, measured once, since they fill it."""
    images, epochs, seeds = (128, 2, 2) if settings.quick else (512, 8, 3)
    pair, source = settings.pairs[0], shortened(source, images)
    table = Table(
        f"Scale: runs that share a cache, {' -> '.join(pair)}, {images} images, {epochs} epochs each, measured once",
        ["seed", "method", "rows found, %", "seconds", "seconds with a live teacher", "all so far, times as fast"],
    )
    with cache_folder() as folder:
        teacher = make_teacher(pair[0], make_data(source, settings), settings)
        for seed in range(seeds):
            data = make_data(source, settings, **{"EXPERIMENT.SEED": seed})
            for method in SWEEP:
                step = OurStep(data, teacher, pair, method, settings, cache=folder, warm=False)
                live = OurStep(data, teacher, pair, method, settings)
                add_runs(table, seed, method, step, live, epochs, settings)
    return [table, _passes_saved()]


def add_runs(table: Table, seed: int, line: str, step: OurStep, live: OurStep, epochs: int, settings: Settings):
    """Adds a row: a run with the shared cache and one with a live teacher, and how much faster all so far were."""
    fast, slow = (_timed_epochs(one, epochs, settings) for one in (step, live))
    table.seconds |= {f"seed {seed}, {line}, shared": [fast], f"seed {seed}, {line}, live": [slow]}
    found = 100 * (1 - step.cache.misses / step.cache.lookups)
    shared, apart = (sum(seconds for name, (seconds,) in table.seconds.items() if name.endswith(kind))
                     for kind in ("shared", "live"))
    table.rows.append([str(seed), line, f"{found:.1f}", f"{fast:.2f}", f"{slow:.2f}", f"{apart / shared:.2f}"])


def _timed_epochs(step, epochs, settings):
    """Seconds of the first `epochs` epochs of a run, after one step of another epoch; counts of the cache are reset."""
    step.epoch(epochs + 1, steps=1)  # first calls are slow
    if step.cache is not None:
        step.cache.lookups = step.cache.misses = 0
    synchronize(settings.device)
    clock = CLOCKS[settings.clock]
    start = clock()
    for epoch in range(1, epochs + 1):
        step.epoch(epoch)
    synchronize(settings.device)
    return clock() - start


def _passes_saved():
    table = Table(
        "Teacher passes with a shared cache, as a share of those without: calculated, not measured",
        ["epochs a run", "one run", f"{len(SWEEP)} methods, one seed", f"{len(SWEEP)} methods, 3 seeds"],
        notes=[
            f"Runs with the same seed use the same views. Of {NUM_VIEWS} views, n draws are expected to reach "
            f"{NUM_VIEWS} (1 - (1 - 1/{NUM_VIEWS})^n)."
        ],
    )
    for epochs in (40, 100, 240):
        def share(runs, seeds, epochs=epochs):
            reached = NUM_VIEWS * (1 - (1 - 1 / NUM_VIEWS) ** (epochs * seeds))
            return f"{100 * reached / (epochs * seeds * runs):.1f} %"

        table.rows.append([str(epochs), share(1, 1), share(len(SWEEP), 1), share(len(SWEEP), 3)])
    return table
