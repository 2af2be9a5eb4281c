"""Run the tasks of a sweep as jobs of a cluster, through submitit."""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

from mdistiller.command import Interrupted
from mdistiller.errors import UserError
from mdistiller.libraries import import_extra
from mdistiller.sweep.processes import (
    CLUSTER_SECONDS,
    ELSEWHERE,
    FAILED,
    PACKAGE_ROOT,
    POLL_SECONDS,
    Outcome,
    Signals,
    forget_failure,
    outcome,
    start,
    take_lock,
)


class SubmittedRun:
    """The callable that a cluster node executes for a task. A job that is requeued resumes its run."""

    def __init__(self):
        self.process = None

    def __call__(self, task) -> Outcome:
        lock = take_lock(task.record)
        if lock is None:
            return Outcome(ELSEWHERE, "its lock is held by another sweep, or by a run that such a sweep left running")
        forget_failure(task.record)
        self.process = start(task, lock)
        try:
            return outcome(task, self.process.wait())
        finally:
            lock.close()

    def checkpoint(self, task):
        """Called by submitit on timeout or preemption: stop the run and queue the job again."""
        self.process.terminate()
        self.process.wait()
        return submitit().helpers.DelayedSubmission(SubmittedRun(), task)


def submitit() -> ModuleType:
    """The optional library. Raises UserError with the install command when it is missing."""
    return import_extra("submitit", "--launcher slurm", "slurm")


def run_submitted(tasks: Sequence, jobs: int, cluster: str, folder: Path, options: dict, report: Callable) -> None:
    """Run tasks as jobs of a cluster ("slurm", or "local" for processes of this machine), `jobs` at a time.

    `options` are passed to submitit (timeout_min, slurm_partition, gpus_per_node, ...). Waits until all jobs have
    ended. A signal cancels queued and running jobs, which the next sweep continues, and raises Interrupted. Raises
    UserError for invalid options or a machine without SLURM.
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
