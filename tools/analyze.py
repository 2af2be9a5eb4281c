"""Measure trained models for a figure of the paper: python tools/analyze.py --figure 2 --runs output/figures.

Writes figure_<n>_*.csv and .npz to the folder --output, and figure_<n>.json with the runs that were measured;
tools/figures.py draws them. A figure that has already been measured is skipped unless --again is given. KEY VALUE:
overrides of the runs' configs that do not change results, such as DATASET.ROOT /data or DEVICE cpu.
"""

import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, not an installed copy

from mdistiller.command import Parser, quiet_interrupts, run_command

quiet_interrupts()

from mdistiller.errors import UserError
from mdistiller.registry import split_ea

NAMES = ("1", "2", "3", "4", "5", "6", "7", "8", "B1", "B2", "B3")  # of the paper
WEIGHTS = "weights"  # of language models, which "all" leaves out


def main():
    parser = Parser(__doc__)
    parser.add_argument("--figure", nargs="+", required=True, choices=[*NAMES, WEIGHTS, "all"], metavar="NAME",
                        help="2, B1, ...; weights (of language models); or all but weights: all")
    parser.add_argument("--runs", nargs="+", required=True, metavar="FOLDER", help="folders that hold run folders")
    parser.add_argument("--output", default="analysis", help="folder for the measurements (default: analysis)")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="default: those of the paper's figure")
    parser.add_argument("--points", type=int, default=21, help="points per axis of a loss surface (default: 21)")
    parser.add_argument("--images", type=int, default=1000, help="images for a loss surface (default: 1000)")
    parser.add_argument("--key", metavar="KEY", help="the setting that Figure 8 varies (default: DKD.BETA)")
    parser.add_argument("--again", action="store_true", help="repeat measurements that exist already")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE")
    args = parser.parse_intermixed_args()
    if args.points < 2 or args.images < 1:
        raise UserError("expected --points of at least 2 and --images of at least 1")

    from mdistiller.analysis import files, measure
    from mdistiller.engine.run_folder import commit
    from mdistiller.runs.records import readable_runs

    runs = [run for folder in args.runs for run in readable_runs(folder)]
    varied = {"key": args.key} if args.key else {}
    options = measure.Options(tuple(args.opts), points=args.points, images=args.images, **varied)
    output = Path(args.output)
    for name in NAMES if "all" in args.figure else args.figure:
        if files.marker(output, name).is_file() and not args.again:
            print(f"figure {name}: measured already, see {files.marker(output, name)} (--again repeats it)")
            continue
        figure = measure.FIGURES[name]
        key = options.key if figure.several else None
        methods = chosen_runs(runs, args.methods or figure.methods, key, " ".join(args.runs))
        content = figure.measure(methods, options)
        used = [run for same in methods.values() for run in same]
        source = {"command": shlex.join(["python", *sys.argv]), "commit": commit(), "runs": [describe(r) for r in used]}
        written = files.write(output, name, content, source)
        print(f"figure {name}: {', '.join(map(str, written))}", flush=True)


def chosen_runs(runs, names, varied, where):
    """Finished runs by method, one per seed, each baseline before its EA- variant.

    Raises UserError for a method without runs, for several networks or data sets, and for several configurations of one
    method, except those that differ in the key `varied` alone (None: in no key).
    """
    from mdistiller.runs.records import group_runs

    done = [run for run in runs if run.done and run.config["DISTILLER.TYPE"] != "NONE"]
    found = sorted({run.method for run in done}, key=split_ea)
    missing = [name for name in names if name not in found]
    if missing or not found:
        raise UserError(f"{where}: no finished run of {', '.join(missing) or 'any method with a teacher'}; "
                        "bash scripts/reproduce_figures.sh trains what the paper's figures need, and bash "
                        "scripts/reproduce_study_language.sh what weights needs")
    methods = {}
    for name in names or found:
        same = [run for run in done if run.method == name]
        groups = group_runs(replace(run, config={key: run.config[key] for key in run.config if key != varied})
                            for run in same)
        if len(groups) > 1:
            apart = f", {varied} left out" if varied else ""
            raise UserError(f"{where}: {len(groups)} configurations of {name}{apart}; choose folders with only one by "
                            "--runs")
        methods[name] = [run for group in group_runs(same) for run in group]
    pairs = {tuple(run.config[key] for key in ("DATASET.TYPE", "DISTILLER.TEACHER", "DISTILLER.STUDENT"))
             for same in methods.values() for run in same}
    if len(pairs) > 1:
        told = ", ".join(" ".join(pair) for pair in sorted(pairs))
        raise UserError(f"{where}: expected runs of one data set and one pair of networks; found {told}")
    return methods


def describe(run):
    """The entries of figure_<n>.json about one run."""
    config = json.loads(json.dumps(dict(run.config), default=str))
    return {"path": str(run.path), "method": run.method, "seed": run.seed, "commit": run.metadata.get("commit"),
            "epochs": config.get("SOLVER.EPOCHS"), "data": config["DATASET.TYPE"],
            "teacher": config["DISTILLER.TEACHER"], "student": config["DISTILLER.STUDENT"]}


def cli():
    run_command(main)


if __name__ == "__main__":
    cli()
