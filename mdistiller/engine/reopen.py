"""Finished runs and loose checkpoints, opened again: to evaluate, to analyse, to export."""

from collections.abc import Sequence
from pathlib import Path

from mdistiller.config import load_cfg
from mdistiller.data import build_data
from mdistiller.distillers import DISTILLERS, build_distiller
from mdistiller.engine import checkpoints
from mdistiller.engine.device import autocast, choose_device, out_of_memory_fails_the_run, place
from mdistiller.engine.evaluation import evaluate
from mdistiller.engine.setup import build_network
from mdistiller.errors import UserError


def open_run(folder: str | Path, checkpoint: str = "best", opts: Sequence = ()):
    """(cfg, data, distiller in eval mode) of a run, at one of its checkpoints ("best", "latest", "epoch_40").

    The teacher has the run's architecture but no weights: nothing here needs them.
    """
    folder = Path(folder)
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder}: no run folder (config.yaml is missing)")
    cfg = load_cfg(folder / "config.yaml", opts)
    device = choose_device(cfg.DEVICE)
    data = build_data(cfg, device)
    student, teacher = build_network(cfg, "STUDENT", data.info), None
    if DISTILLERS[cfg.DISTILLER.TYPE].needs_teacher:
        teacher = build_network(cfg, "TEACHER", data.info)
    distiller = build_distiller(cfg, student, teacher, data.info)
    path = folder / f"{checkpoint}.pth"
    try:
        distiller.load_state_dict(checkpoints.load(path)["model"])
    except (KeyError, RuntimeError, TypeError, AttributeError):
        raise UserError(f"{path}: does not hold the state of the run that {folder}/config.yaml describes") from None
    return cfg, data, place(distiller, device, cfg.SOLVER.CHANNELS_LAST).eval()


@out_of_memory_fails_the_run()
def evaluate_run(folder: str | Path, opts: Sequence = ()) -> dict[str, dict]:
    """Test results of a run's last and best epoch, in the precision (SOLVER.AMP) that it was measured in."""
    results = {}
    for name, checkpoint in (("last", "latest"), ("best", "best")):
        cfg, data, distiller = open_run(folder, checkpoint, opts)
        device = choose_device(cfg.DEVICE)
        with autocast(device, cfg.SOLVER.AMP):
            results[name] = evaluate(distiller, data.eval_batches("test"), device)
    return results


@out_of_memory_fails_the_run()
def evaluate_checkpoint(model: str, path: str | Path, dataset: str, opts: Sequence = ()) -> dict:
    """Test results of a network's checkpoint file on a data set."""
    cfg = load_cfg(None, ["DATASET.TYPE", dataset, "DISTILLER.STUDENT", model, *opts])
    device = choose_device(cfg.DEVICE)
    data = build_data(cfg, device)
    network = build_network(cfg, "STUDENT", data.info)
    checkpoints.load_network(network, path, f"{model} with {data.info.num_classes} classes")
    network = place(network, device, cfg.SOLVER.CHANNELS_LAST).eval()
    with autocast(device, cfg.SOLVER.AMP):
        return evaluate(lambda image: network(image).logits, data.eval_batches("test"), device)
