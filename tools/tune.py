"""Tune the settings of a method on validation images: python tools/tune.py --cfg FILE [--trials 16] [KEY VALUE ...].

Every method has the same budget of trials. No choice reads the test images; at the end the chosen settings are measured
on them, over fresh seeds. The command may be stopped and continued. Several processes with the same command, on one
machine or on a cluster, share the trials.
The report is <LOG.PREFIX>/tune/<name>/report.md. Needs Optuna and matplotlib: pip install 'mdistiller-ea[tune]'.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, not an installed copy

from mdistiller.command import Parser, quiet_interrupts, run_command

quiet_interrupts()

import yaml

from mdistiller.config.stated import as_overrides
from mdistiller.errors import UserError, counted
from mdistiller.files import write_text
from mdistiller.libraries import import_extra
from mdistiller.registry import chosen

SEEDS = 5  # of the final runs


def parse():
    parser = Parser(__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--cfg", metavar="FILE", help="a YAML file, such as configs/digits/ea_dkd/res20_res8.yaml")
    what.add_argument("--study", metavar="NAME", help="all lines of a study that are tuned: fair")
    parser.add_argument("--methods", nargs="+", default=[], metavar="LINE", help="only these lines of --study")
    parser.add_argument("--trials", type=int, default=16, metavar="N", help="the budget (default: 16)")
    parser.add_argument("--seeds", type=int, metavar="N", help=f"seeds of the final runs of --cfg (default: {SEEDS})")
    parser.add_argument("--name", help="of this tuning (default: made of FILE and KEY VALUE)")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="overrides; the keys that they set are not varied")
    args = parser.parse_intermixed_args()
    parser.refuse_more_seeds(args)
    if args.study and args.seeds is not None:
        raise UserError("--seeds: of --cfg; tools/sweep.py --study NAME --seeds N trains the lines of a study")
    args.seeds = SEEDS if args.seeds is None else args.seeds
    for name in ("trials", "seeds"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name}: expected a number of {name}, at least 1; found {getattr(args, name)}")
    if args.study and args.name:
        raise UserError("--name: of --cfg; the lines of --study are named by the study")
    if args.name and (Path(args.name).name != args.name or args.name == ".."):
        raise UserError(f"--name: expected the name of a folder; found {args.name}")
    if args.cfg and args.methods:
        raise UserError("--methods: of --study; --cfg is one configuration")
    return args


def main():
    args = parse()
    import_extra("optuna", "tuning", "tune")
    extra = as_overrides(args.opts)
    if args.cfg:
        tune(args.cfg, extra, args.name, args.trials, args.seeds)
        return
    from mdistiller.report.study import load_studies

    lines = {name: line for name, line in load_studies(extra, tuned=False)[args.study].lines.items() if line.tuned}
    if not lines:
        raise UserError(f"--study {args.study}: has no line that is tuned")
    for line in chosen(f"line of study {args.study} that is tuned", lines, args.methods).values():
        training, folder = line.training, f"{args.study}/{line.training.name}"
        tuned = tune(training.config, training.overrides, folder, args.trials, 0, extra)
        if tuned is not None:
            best, page = tuned
            rows = [row for row in page.splitlines() if not row.startswith("![")]  # its plot lies elsewhere
            comments = "".join(f"# {row}".rstrip() + "\n" for row in rows)
            write_text(line.tuned, comments + yaml.safe_dump(best))


def tune(config, overrides, name, trials, seeds, extra=()):
    """The best settings and the report once all is done, else None. Without `seeds` the test images are left alone."""
    from mdistiller.sweep.tuning import Tuning

    tuning = Tuning(config, (*overrides, *extra), name, trials, seeds)
    print(f"{tuning.name}: {counted(trials, 'trial')} over {', '.join(tuning.space)}; {tuning.folder}", flush=True)
    tuning.run_trials()
    if tuning.open_trials:
        print(f"other processes still run {counted(tuning.open_trials, 'trial')}; the same command ends the study")
        return None
    best = tuning.best()
    print(f"best settings: {', '.join(f'{key} {value}' for key, value in best.items())}", flush=True)
    runs = tuning.run_final()
    if min(map(len, runs.values())) < tuning.seeds:
        print("final runs are still trained by other processes; the same command ends the study")
        return None
    return best, report(tuning, runs)


def report(tuning, runs):
    """Write the report and its plot; returns its text."""
    from mdistiller.report.tuning import PLOT, TrialRow, plot_sensitivity, tuning_page

    trials = [TrialRow(trial.number, trial.params, value_of(trial), trial.state.name.lower())
              for trial in tuning.study.get_trials()]
    cfg = tuning.cfg
    updates, epochs = cfg.SOLVER.MAX_ITER, cfg.SOLVER.EPOCHS
    length = counted(updates, "update") if updates else counted(epochs, "epoch")
    budget = (f"{counted(tuning.trials, 'trial')} of {length} with one seed, proposed by TPE; "
              f"{tuning.val_fraction:g} of the training images are set aside to judge them; no choice reads the test "
              "images.")
    space = {key: (str(setting.own), setting.words) for key, setting in tuning.space.items()}
    final = {label: {run.seed: run.result("last") for run in found} for label, found in runs.items()}
    text = tuning_page(f"{cfg.DISTILLER.TYPE}, tuned: {tuning.name}", budget, space, trials, final)
    plot_sensitivity(tuning.folder / PLOT, {key: not one.choices for key, one in tuning.space.items()}, trials)
    write_text(tuning.folder / "report.md", text)
    print(text.partition("## Sensitivity")[0] + f"report: {tuning.folder / 'report.md'}")
    return text


def value_of(trial):
    """The result of a trial, or of the last epoch of one that was ended early."""
    if trial.value is not None:
        return trial.value
    return trial.intermediate_values[max(trial.intermediate_values)] if trial.intermediate_values else None


def cli():
    run_command(main, how_to_continue="the same command continues")


if __name__ == "__main__":
    cli()
