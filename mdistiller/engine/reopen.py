"""Open finished runs and single checkpoint files for evaluation, analysis and export."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from yacs.config import CfgNode

from mdistiller.config import errors_name_files, load_cfg
from mdistiller.config.loading import refuse_own_networks
from mdistiller.engine import checkpoints
from mdistiller.engine.device import choose_device, out_of_memory_fails_the_run, place
from mdistiller.engine.log import evaluated
from mdistiller.engine.networks import load_teacher
from mdistiller.engine.run_folder import read_recorded
from mdistiller.engine.setup import Run, build_run
from mdistiller.engine.weights import load_exactly
from mdistiller.errors import UserError
from mdistiller.files import write_text
from mdistiller.precision import autocast

log = logging.getLogger("mdistiller")


def read_config(folder: str | Path, opts: Sequence = ()) -> CfgNode:
    """The config of a run folder, with overrides. Raises UserError when the folder is not a run folder.

    A run folder may come from an untrusted source. Python files that its config names are therefore not imported;
    this raises UserError unless the overrides name the same files.
    """
    path = Path(folder) / "config.yaml"
    if not path.is_file():
        raise UserError(f"{folder}: not a run folder (config.yaml is missing)")
    cfg = read_recorded(path, opts)
    refuse_own_networks(cfg)
    return cfg


def open_run(folder: str | Path, checkpoint: str = "best", opts: Sequence = ()) -> Run:
    """A run with the weights of one of its checkpoints ("best", "latest", "epoch_40"), its distiller in eval mode.

    The teacher has random weights, since evaluating the student does not need it. Raises UserError when the checkpoint
    is missing or does not belong to the run's config.
    """
    if Path(checkpoint).name != checkpoint:  # of another run, perhaps
        raise UserError(f"--checkpoint: expected a name such as best or epoch_40; found {checkpoint!r}")
    cfg = read_config(folder, opts)
    with errors_name_files(cfg):
        run = build_run(cfg, choose_device(cfg.DEVICE), weights=False)
    _load(run, folder, checkpoint)
    return run


def _load(run, folder, checkpoint):
    path = Path(folder) / f"{checkpoint}.pth"
    state = checkpoints.load(path)
    try:
        load_exactly(run.distiller, state["model"])
    except (KeyError, RuntimeError, TypeError, AttributeError, ValueError) as error:
        reason = f": {error}" if isinstance(error, ValueError) else ""
        raise UserError(
            f"{path}: does not hold the state of the run that {folder}/config.yaml describes{reason}") from None
    run.distiller.eval()


@out_of_memory_fails_the_run()
def evaluate_run(folder: str | Path, opts: Sequence = (), results: str | None = None) -> dict[str, dict]:
    """Test metrics of the last and the best epoch of a run, computed in the run's precision (SOLVER.AMP).

    Predictions of the last epoch's network are written to the file `results` if given, see `Task.results`.
    """
    run, found = open_run(folder, "best", opts), {}  # of both epochs: to find the images takes longer than a checkpoint
    _load(run, folder, "latest")  # a damaged one is told before the other is measured
    found["last"] = _test(run, f"{folder}/latest.pth", results=results)
    _load(run, folder, "best")
    found["best"] = _test(run, f"{folder}/best.pth")
    return found


def _test(run, source, network=None, results=None):
    network = run.distiller.deployed().eval() if network is None else network
    if not all(value.isfinite().all() for value in network.state_dict().values()):
        log.warning("%s: the weights are not finite, so the numbers below say nothing", source)
    with autocast(run.device, run.cfg.SOLVER.AMP):
        numbers = run.task.evaluate(network, evaluated(run.data, "test"), run.device)
    if results is not None:
        if run.task.results is None:
            raise UserError(f"--results: expected a detection data set; {run.data.info.name} has no predictions")
        write_text(results, json.dumps(run.task.results))
    return numbers


@out_of_memory_fails_the_run()
def evaluate_checkpoint(
    model: str | None, path: str | Path | None, dataset: str | None, opts: Sequence = (), cfg_file: str | None = None,
    results: str | None = None,
) -> dict:
    """Test metrics of a checkpoint file on a data set; without a file, of the network as a teacher (`load_teacher`).

    `cfg_file` supplies the model or data set when these are None. Predictions are written to the file `results` if
    given, see `Task.results`.
    """
    named = {"DATASET.TYPE": dataset, "DISTILLER.STUDENT": model}
    chosen = [word for key, value in named.items() if value is not None for word in (key, value)]
    cfg = load_cfg(cfg_file, ["DISTILLER.TYPE", "NONE", *chosen, *opts])
    cfg.DISTILLER.TEACHER = cfg.DISTILLER.STUDENT
    with errors_name_files(cfg):
        run = build_run(cfg, choose_device(cfg.DEVICE), weights=False)
        network = load_teacher(cfg, run.task)[0] if path is None else run.distiller.student
    if path is not None:
        name = f"{cfg.DISTILLER.STUDENT} with {run.data.info.num_classes} classes"
        checkpoints.load_network(network, path, name, cfg.DISTILLER.STUDENT_WEIGHTS)
    source = path or "the teacher's checkpoint"
    return _test(run, source, place(network, run.device, cfg.SOLVER.CHANNELS_LAST).eval(), results)
