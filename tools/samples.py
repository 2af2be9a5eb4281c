"""Per-class accuracy and the hardest test images of runs: python tools/samples.py --runs output/distill/*.

Writes samples.json into each finished run folder of an image classifier with a teacher; tools/report.py then shows the
classes in which a method gains, and the images with their weights and both predictions. KEY VALUE: overrides that do
not change results, such as DATASET.ROOT /data or DEVICE cpu.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, not an installed copy

from mdistiller.command import Parser, quiet_interrupts, run_command

quiet_interrupts()

from mdistiller.errors import UserError
from mdistiller.runs.records import readable_runs


def main():
    parser = Parser(__doc__)
    parser.add_argument("--runs", nargs="+", required=True, metavar="FOLDER", help="folders that hold run folders")
    parser.add_argument("--images", type=int, default=24, help="images to keep of each run (default: 24)")
    parser.add_argument("--checkpoint", default="latest", metavar="NAME",
                        help="latest (default), best, or epoch_<n>")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE")
    args = parser.parse_intermixed_args()
    if args.images < 0:
        raise UserError(f"--images: expected at least 0; found {args.images}")
    runs = [run for folder in args.runs for run in readable_runs(folder)]
    wanted = [run for run in runs if run.done and run.kept is None and run.config["DISTILLER.TYPE"] != "NONE"]
    if not wanted:
        raise UserError(f"{' '.join(args.runs)}: no finished run with a teacher; expected folders of tools/train.py")

    from mdistiller.analysis.samples import write_samples

    for run in wanted:
        print(write_samples(run.path, args.images, args.checkpoint, args.opts), flush=True)


def cli():
    run_command(main)


if __name__ == "__main__":
    cli()
