"""Training steps of a detector: the student alone, with KD and with EA-KD."""

from mdistiller.bench.cases import EA_COLUMNS, short_turns, time_weights, weight_cells
from mdistiller.bench.measure import Contestant, Settings, Table, ratios, spread, take_turns
from mdistiller.bench.ours import Steps
from mdistiller.config import load_cfg
from mdistiller.data.memory import ImageSource
from mdistiller.engine.device import keep_freed_memory
from mdistiller.engine.setup import build_run
from mdistiller.places import find_config

CONFIG = "configs/digits_detection/{}/r18_mv2.yaml"
METHODS = ("vanilla", "kd", "ea_kd")
QUICK = ("MODEL.CHANNELS", 16, "MODEL.HEAD_CHANNELS", 32, "DATASET.MIN_SIZES", "[64]", "SOLVER.BATCH_SIZE", 2)


def bench_detection(settings: Settings, source: ImageSource) -> list[Table]:
    """Steps on drawn digits with the networks and settings of configs/digits_detection (smaller ones if `quick`)."""
    del source  # digits are drawn, on 2000 images
    if settings.device.type == "cpu":
        keep_freed_memory()
    steps = {name: _steps(name, settings) for name in METHODS}
    cfg = steps["kd"].trainer.cfg
    batch, proposals = cfg.SOLVER.BATCH_SIZE, cfg.SOLVER.BATCH_SIZE * cfg.DETECTION.ROI_BATCH
    seconds = take_turns([Contestant(name, step) for name, step in steps.items()], settings)
    cost = Table(
        f"Detection: time of a step, {cfg.DISTILLER.TEACHER} -> {cfg.DISTILLER.STUDENT}, {batch} images",
        ["method", "ms a step", "times that of the student alone"], seconds=seconds,
    )
    for name, values in seconds.items():
        cost.rows.append([name, spread(values, 1e3, 1), ratios(seconds["vanilla"], values, 3)])
    weights = Table(
        f"Detection: time of a step with sample weights over one without, {proposals} proposals",
        list(EA_COLUMNS), notes=[short_turns(settings)],
    )
    classes = steps["kd"].trainer.data.info.num_classes + 1  # and the background
    weights.seconds = time_weights(steps["kd"], steps["ea_kd"], proposals, classes, settings)
    weights.rows.append(["KD", *weight_cells(weights.seconds)])
    return [cost, weights]


def _steps(name, settings):
    small = ("DISTILLER.TEACHER_CHECKPOINT", "random", *QUICK) if settings.quick else ()
    cfg = load_cfg(find_config(CONFIG.format(name)), ["DEVICE", str(settings.device), *small])
    return Steps(build_run(cfg, settings.device))
