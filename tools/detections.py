"""Detections on test images, drawn: python tools/detections.py --run FOLDER [--images 4] [--output FILE.png].

Rows are the ground truth, the teacher and the student. A run's picture is FOLDER/detections.png, which tools/report.py
shows. For a student's checkpoint without its run: --cfg FILE.yaml --checkpoint FILE.pth --output FILE.png.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, not an installed copy

from mdistiller.command import Parser, run_command
from mdistiller.errors import UserError


def main():
    parser = Parser(__doc__)
    parser.add_argument("--run", metavar="FOLDER", help="the folder of a run")
    parser.add_argument("--cfg", metavar="FILE", help="a configuration, in place of a run")
    parser.add_argument("--checkpoint", metavar="FILE", help="the student's weights, with --cfg")
    parser.add_argument("--images", type=int, default=4, help="how many test images, from the first (default: 4)")
    parser.add_argument("--score", type=float, default=0.5, help="least score of a drawn detection (default: 0.5)")
    parser.add_argument("--output", metavar="FILE", help="the PNG file (default: detections.png in the run's folder)")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="overrides, such as DATASET.ROOT /data")
    args = parser.parse_intermixed_args()
    if args.images < 1:
        raise UserError(f"--images: expected at least 1; found {args.images}")
    loose = args.cfg, args.checkpoint, args.output
    if args.checkpoint is not None and args.run is not None:
        raise UserError("--checkpoint: only with --cfg; --run draws the run's best student")
    if (args.run is None) == (args.cfg is None) or (args.run is None and None in loose):
        raise UserError("expected either --run, or --cfg with --checkpoint and --output")

    from mdistiller.engine.pictures import draw_checkpoint, draw_run

    if args.run is not None:
        print(draw_run(args.run, args.images, args.score, args.output, args.opts))
    else:
        print(draw_checkpoint(args.cfg, args.checkpoint, args.images, args.score, args.output, args.opts))


def cli():
    run_command(main)


if __name__ == "__main__":
    cli()
