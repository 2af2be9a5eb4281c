"""Runs as jobs of a cluster, through submitit."""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from mdistiller.command import Interrupted
from mdistiller.errors import UserError
from mdistiller.sweep.processes import (
    CLUSTER_SECONDS,
    ELSEWHERE,
    FAILED,
    PACKAGE_ROOT,
    POLL_SECONDS,
    Lock,
    Outcome,
    Signals,
    outcome,
    start,
)


class SubmittedRun:
    """What a node of a cluster calls for a task: waits for the run; when the job is moved, the run continues there."""

    def __init__(self):
        self.process = None

    def __call__(self, task) -> Outcome:
        lock = Lock.take(task.record)
        if lock is None:
            return Outcome(ELSEWHERE, "another sweep, or a run that one has left behind, holds its lock")
        self.process = start(task, lock)
        try:
            return outcome(task, self.process.wait())
        finally:
            lock.release()

    def checkpoint(self, task):
        """Called by submitit when the job's time is over or it has to give way: put it into the queue again."""
        self.process.terminate()
        self.process.wait()
        return submitit().helpers.DelayedSubmission(SubmittedRun(), task)


def submitit():
    """The optional library. Raises UserError, with the command that installs it, when it is not there."""
    try:
        import submitit
    except ImportError:
        raise UserError("--launcher slurm needs submitit: pip install 'mdistiller-ea[slurm]'") from None
    return submitit


def run_submitted(tasks: Sequence, jobs: int, cluster: str, folder: Path, options: dict, report: Callable) -> None:
    """Run tasks as jobs of a cluster ("slurm", or "local" for processes of this machine), `jobs` at a time.

    `options` go to submitit as they are (timeout_min, slurm_partition, gpus_per_node, ...). Waits for all of them; a
    signal cancels what is queued or running, which continues with the next sweep. Raises Interrupted then.
    """
    library = submitit()
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(PACKAGE_ROOT), os.environ.get("PYTHONPATH"))))
    try:
        executor = library.AutoExecutor(folder=folder, cluster=cluster)
        executor.update_parameters(**({"slurm_array_parallelism": jobs} if cluster == "slurm" else {}), **options)
    except (NameError, TypeError, ValueError, RuntimeError) as error:  # an unknown option; no srun on this machine
        raise UserError(f"--launcher slurm: {error}") from None
    with executor.batch():
        submitted = [(executor.submit(SubmittedRun(), task), task) for task in tasks]
    with Signals() as signals:
        while submitted and not signals.number:
            for entry in [entry for entry in submitted if entry[0].done()]:
                submitted.remove(entry)
                report(entry[1], _result(entry[0]))
            time.sleep(POLL_SECONDS if cluster == "local" else CLUSTER_SECONDS)
        for job, _ in submitted:
            job.cancel()
    if signals.number:
        raise Interrupted(signals.number)


def _result(job):
    error = job.exception()
    if error is None:
        return job.result()
    return Outcome(FAILED, f"{str(error).strip().splitlines()[-1]} ({job.paths.stderr})")
