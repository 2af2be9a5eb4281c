"""Train the runs of a table of the paper, or of a list of configs, over several seeds. Can be stopped and continued.

    python tools/sweep.py --table 2 --methods KD EA-KD --pairs vgg13_vgg8 --seeds 3
    python tools/sweep.py --cfg a.yaml b.yaml --seeds 3 --jobs 2 SOLVER.EPOCHS 100
    python tools/sweep.py --table 2 --pairs res32x4_res8x4 --together 4 DATASET.SEED 0

Finished runs in the folder --runs are found by their config, independent of their names, and are not repeated. A
stopped run continues; a failed run is kept, and tried again with --retry-failed.
"""

import argparse
import math
import os
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, not an installed copy

from mdistiller.command import Interrupted, Parser, quiet_interrupts, run_command

quiet_interrupts()

from mdistiller.config.stated import as_overrides
from mdistiller.errors import UserError
from mdistiller.registry import chosen
from mdistiller.report.study import load_studies
from mdistiller.runs.folders import check_folder
from mdistiller.runs.language import SPEC as LANGUAGE
from mdistiller.runs.language import is_language, trainings
from mdistiller.runs.paper import covered_tables
from mdistiller.runs.progress import duration
from mdistiller.runs.records import metric_words, read_run, readable_runs
from mdistiller.runs.training import Training
from mdistiller.sweep import cluster, plan, processes

MOST_FORKS = 8  # most parallel runs with --fork, unless --jobs is given


def parse():
    parser = Parser(__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--table", nargs="+", metavar="NAME",
                      help="2, A1, ...; or all (but 7 and A3, of language models)")
    what.add_argument("--cfg", nargs="+", metavar="FILE")
    what.add_argument("--study", metavar="NAME", help="a study, such as small; --methods chooses lines")
    parser.add_argument("--methods", nargs="+", default=[], metavar="NAME", help="only these methods or lines")
    parser.add_argument("--pairs", nargs="+", default=[], metavar="NAME", help="only these, such as res32x4_res8x4")
    parser.add_argument("--seeds", type=int, metavar="N", help=(
        "seeds 0 ... N-1 (default: as the paper or the study; 1 for --cfg and --smoke)"))
    parser.add_argument("--runs", help="folder to search for finished runs (default: the folder of new runs)")
    parser.add_argument("--jobs", type=int, metavar="N", help=(
        "parallel runs (default: one per CUDA device, or 1; with --fork or --smoke one per CPU core, at most "
        f"{MOST_FORKS})"))
    parser.add_argument("--fork", action="store_true", help="fork runs from one process, for short runs")
    parser.add_argument("--together", nargs="*", metavar="N", help="runs of one teacher and one seed of the data train "
                        "in one process, at most N, and share batches and the teacher's passes")
    parser.add_argument("--launcher", choices=("local", "slurm"), default="local",
                        help="where runs are started (default: local)")
    parser.add_argument("--cluster", default="slurm", help=argparse.SUPPRESS)  # another executor of submitit, for tests
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE",
                        help="option of submitit: slurm_partition=gpu, timeout_min=1440, gpus_per_node=1, ...")
    parser.add_argument("--smoke", action="store_true", help="test on digits, two epochs, with small networks")
    parser.add_argument("--retry-failed", action="store_true", help="try failed runs again")
    parser.add_argument("--dry-run", action="store_true", help="only print the plan and the commands")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="overrides for all runs, such as SOLVER.EPOCHS 2")
    args = parser.parse_intermixed_args()
    parser.refuse_more_seeds(args)
    if args.study and (args.smoke or args.pairs):
        parser.error(f"--study cannot be combined with {'--smoke' if args.smoke else '--pairs'}; use --methods")
    for name in ("seeds", "jobs"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name}: expected a number of {name}, at least 1; found {getattr(args, name)}")
    if args.option and args.launcher == "local":
        raise UserError("--option: only with --launcher slurm")
    if args.together is not None:
        if args.launcher != "local":
            raise UserError(f"--together: cannot be combined with --launcher {args.launcher}")
        args.together = most_together(args.together)
    return args


def most_together(words):
    """The largest group that the words behind --together allow; infinity without a word."""
    if not words:
        return math.inf
    if len(words) > 1 or not words[0].isdecimal() or int(words[0]) < 2:
        raise UserError(f"--together: expected a whole number of runs, at least 2, or nothing; found {' '.join(words)}")
    return int(words[0])


def planned(args):
    """The runs that the command line selects."""
    extra = as_overrides(args.opts)
    if args.study:
        lines = load_studies(extra)[args.study].lines
        lines = chosen(f"line of study {args.study}", lines, args.methods)
        waiting = [name for name, line in lines.items() if not line.ready]
        tuning = f"python tools/tune.py --study {args.study}"
        if waiting:
            print(f"not trained, because they are not tuned yet ({tuning}): {'; '.join(waiting)}")
        wanted = [(line.training, args.seeds or line.seeds) for line in lines.values() if line.ready]
        if not wanted:
            raise UserError(f"--study {args.study}: no line is tuned yet; tune them with {tuning}")
    elif args.table and any(map(is_language, args.table)):
        wanted = _language(args, extra)
    elif args.table:
        tables = {table.name: table for table in covered_tables(args.table)}
        cells = plan.choose_cells(tables.values(), args.methods, args.pairs)
        seeds = {name: 1 if args.smoke else table.runs or 1 for name, table in tables.items()}
        wanted = [(Training.of_cell(cell, extra, args.smoke), args.seeds or seeds[cell.table]) for cell in cells]
    else:
        if args.methods or args.pairs:
            raise UserError("--methods and --pairs choose cells of --table; they cannot be used with --cfg")
        wanted = [(Training(config, (), extra, args.smoke), args.seeds or 1) for config in args.cfg]
    return plan.plan_runs(wanted)


def _language(args, extra):
    """The trainings of the rows and the controls of tables of language models."""
    if args.pairs:
        raise UserError("--pairs: tables of language models have one pair of networks; --methods chooses their rows")
    rows = {}
    for name in args.table:
        if not is_language(name):
            raise UserError(f"--table: {name}: cannot be combined with tables of language models")
        rows |= trainings(name, extra, args.smoke)
    seeds = args.seeds or (1 if args.smoke else LANGUAGE["seeds"])
    return [(training, seeds) for training in chosen("row of the table", rows, args.methods).values()]


def main():
    args = parse()
    runs = planned(args)
    devices = processes.local_devices()
    fork = args.fork or args.smoke
    jobs = args.jobs or (min(os.cpu_count(), MOST_FORKS) if fork else max(1, len(devices)))
    if args.runs:
        check_folder(args.runs)
    progress = plan.Progress(readable_runs(args.runs or runs[0].training.prefix, some=False))
    states = {run: progress.state(run) for run in runs}
    wanted = (plan.STARTED, plan.LEFT, *([plan.FAILED] if args.retry_failed else []))
    todo = [run for run in runs if states[run] in wanted]
    tasks = plan.grouped(todo, args.together) if args.together else todo
    print(plan.summary(runs, states, progress, todo, jobs), flush=True)
    if args.dry_run:
        print("".join(map(commands, tasks)), end="")
        return 0
    reporter = Reporter(len(todo))
    try:
        with plan.announced(todo, jobs):
            launch(args, tasks, jobs, devices, fork, reporter)
    except Interrupted as stop:
        print(f"stopped by {stop}; the same command continues", file=sys.stderr)
        return stop.exit_code
    return reporter.end(sum(states[run] == plan.FAILED for run in runs if run not in todo))


def commands(task):
    """The commands of a task, as lines; a comment says which of them are a group."""
    runs = task.runs if isinstance(task, plan.Group) else (task,)
    lines = [f"# {len(runs)} runs together:"] if len(runs) > 1 else []
    return "".join(f"{line}\n" for line in [*lines, *(f"python {shlex.join(run.command)}" for run in runs)])


def launch(args, todo, jobs, devices, fork, reporter):
    def is_done(run):
        return plan.current_state(run) == plan.DONE

    if args.launcher == "slurm" and todo:
        options = dict(map(submission_option, args.option))
        folder = todo[0].record.parent / "jobs"
        cluster.run_submitted(todo, jobs, args.cluster, folder, options, reporter.report)
    elif todo:
        processes.LocalSweep(todo, jobs, devices, is_done, reporter.report, fork, reporter.waits).run()


def submission_option(text):
    import yaml

    name, equals, value = text.partition("=")
    try:
        if not equals:
            raise ValueError
        return name, yaml.safe_load(value)
    except (yaml.YAMLError, ValueError):
        raise UserError(f"--option: expected NAME=VALUE, such as timeout_min=60; found {text!r}") from None


class Reporter:
    """Prints a line for each run that ends, and a summary at the end."""

    def __init__(self, total):
        self.total, self.ended, self.bad = total, 0, []

    def report(self, run, outcome):
        self.ended += 1
        stopped = "the same command continues it" if outcome.kind == processes.STOPPED else ""
        if outcome.error or stopped:
            self.bad.append(outcome.kind)
        result = outcome.error or stopped or result_line(run)
        print(f"[{self.ended}/{self.total}] {outcome.kind}: {run.name}: {result}", flush=True)

    def waits(self, runs):
        print(f"waiting for another sweep, which has {', '.join(run.name for run in runs)}", flush=True)

    def end(self, failed_before):
        """Print the summary; returns the exit code.

        0: all done. 2: no run can start before the user fixes an error. 3: some runs failed, now or earlier, were
        stopped by somebody else, or are still trained by another sweep.
        """
        bad, left = len(self.bad), self.total - self.ended
        words = [f"{self.ended - bad} of {self.total} done", f"{bad} not" if bad else ""]
        words += [f"{left} not tried, since they would end with the same error" if left else ""]
        print("; ".join(filter(None, words)) if self.total else "nothing left to do")
        if {*self.bad} - {processes.REFUSED} or failed_before or self.ended > bad > 0:
            return 3
        return 2 if bad or left else 0


def result_line(run):
    record = read_run(run.folder)
    if record.result("last") is None:
        return "no epoch finished yet"
    seconds = duration(record.summary["wall_seconds"])
    words = metric_words(record.headline)
    return f"{words} {record.result('last'):.2f} last, {record.result('best'):.2f} best, {seconds}"


def cli():
    run_command(main)


if __name__ == "__main__":
    cli()
