"""Finished runs and loose checkpoints, opened again: to evaluate, to analyse, to export."""

from collections.abc import Sequence
from pathlib import Path

from mdistiller.config import load_cfg
from mdistiller.engine import checkpoints
from mdistiller.engine.device import autocast, choose_device, out_of_memory_fails_the_run, place
from mdistiller.engine.setup import Run, build_run
from mdistiller.errors import UserError


def open_run(folder: str | Path, checkpoint: str = "best", opts: Sequence = ()) -> Run:
    """A run at one of its checkpoints ("best", "latest", "epoch_40"), its distiller in eval mode.

    The teacher has the run's architecture but no weights: nothing here needs them.
    """
    folder = Path(folder)
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder}: no run folder (config.yaml is missing)")
    cfg = load_cfg(folder / "config.yaml", opts)
    run = build_run(cfg, choose_device(cfg.DEVICE), weights=False)
    path = folder / f"{checkpoint}.pth"
    try:
        run.distiller.load_state_dict(checkpoints.load(path)["model"])
    except (KeyError, RuntimeError, TypeError, AttributeError):
        raise UserError(f"{path}: does not hold the state of the run that {folder}/config.yaml describes") from None
    run.distiller.eval()
    return run


@out_of_memory_fails_the_run()
def evaluate_run(folder: str | Path, opts: Sequence = ()) -> dict[str, dict]:
    """Test results of a run's last and best epoch, in the precision (SOLVER.AMP) that it was measured in."""
    return {name: _test(open_run(folder, checkpoint, opts)) for name, checkpoint in
            (("last", "latest"), ("best", "best"))}


def _test(run, network=None):
    network = run.distiller.deployed().eval() if network is None else network
    with autocast(run.device, run.cfg.SOLVER.AMP):
        return run.task.evaluate(network, run.data.eval_batches("test"), run.device)


@out_of_memory_fails_the_run()
def evaluate_checkpoint(model: str, path: str | Path, dataset: str, opts: Sequence = ()) -> dict:
    """Test results of a network's checkpoint file on a data set."""
    cfg = load_cfg(None, ["DISTILLER.TYPE", "NONE", "DATASET.TYPE", dataset, "DISTILLER.STUDENT", model, *opts])
    run = build_run(cfg, choose_device(cfg.DEVICE), weights=False)
    network = run.distiller.student
    name = f"{model} with {run.data.info.num_classes} classes"
    checkpoints.load_network(network, path, name, cfg.DISTILLER.STUDENT_WEIGHTS)
    return _test(run, place(network, run.device, cfg.SOLVER.CHANNELS_LAST).eval())
