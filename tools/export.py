"""Export a run's student: python tools/export.py --run FOLDER [KEY VALUE ...] [--formats FORMAT ...].

Writes student.pth (a plain state dict), student.safetensors, student.onnx (compared with PyTorch; image classifiers) or
student.torchscript (detectors, for one size of image), and student.json, which describes them; of a language model the
folder pretrained/, for from_pretrained.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, not an installed copy

from mdistiller.command import Parser, run_command


def main():
    parser = Parser(__doc__)
    parser.add_argument("--run", required=True, metavar="FOLDER", help="the folder of a run")
    parser.add_argument("--checkpoint", default="best", help="best, latest, epoch_<n> or ema (default: best)")
    parser.add_argument("--formats", nargs="+", metavar="FORMAT",
                        help="any of pth, safetensors, onnx, torchscript (default: all that the network supports)")
    parser.add_argument("--output", metavar="DIR", help="output folder (default: export/ in the run's folder)")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="overrides, such as DATASET.ROOT /data")
    args = parser.parse_intermixed_args()

    from mdistiller.engine.export import export_run

    for path in export_run(args.run, args.checkpoint, args.formats, args.output, args.opts):
        print(path)


def cli():
    run_command(main)


if __name__ == "__main__":
    cli()
