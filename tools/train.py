"""Train a student (or a teacher) from a config: python tools/train.py --cfg FILE [--resume] [KEY VALUE ...]."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, not an installed copy

from mdistiller.command import Parser, add_public_options, run_command


def arguments():
    """The command line; the options of other code bases become overrides."""
    parser = Parser(__doc__)
    parser.add_argument("--cfg", required=True, help="a YAML file, such as configs/cifar100/ea_kd/res32x4_res8x4.yaml")
    parser.add_argument("--resume", action="store_true", help="continue an existing run in its folder")
    add_public_options(parser)
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="overrides, such as SOLVER.EPOCHS 10")
    args = parser.parse_intermixed_args()
    if args.M is not None:
        args.opts = [f"M={args.M}", *args.opts]
    if args.gpu is not None:
        args.opts = [f"DEVICE=cuda:{args.gpu}", *args.opts]
    standardization = args.logit_stand, args.base_temp, args.kd_weight
    if any(standardization):
        from mdistiller.config.public import with_standardization
        from mdistiller.config.stated import stated

        args.opts = with_standardization(args.opts, stated(args.cfg, args.opts), *standardization)
    return args


def main():
    args = arguments()

    from mdistiller.config import load_cfg
    from mdistiller.engine.setup import train

    train(load_cfg(args.cfg, args.opts), resume=args.resume)


def cli():
    run_command(main)


if __name__ == "__main__":
    cli()
