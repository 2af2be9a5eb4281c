"""Teacher caches: python tools/cache.py inspect | prefill --cfg FILE | verify FOLDER | delete FOLDER.

Runs with TEACHER_CACHE.ENABLED True fill their cache themselves; this command is not needed for that.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, not an installed copy

from mdistiller.command import Parser, run_command
from mdistiller.errors import counted

ROWS = 1024  # that are compared with the teacher


def main():
    args = _parse()

    from mdistiller.config import load_cfg
    from mdistiller.engine.cache import admin as cache_admin
    from mdistiller.engine.log import start_logging

    start_logging()
    if args.action == "inspect":
        print(cache_admin.inspect(args.folder))
    elif args.action == "prefill":
        cache_admin.prefill(load_cfg(args.cfg, args.opts), args.epochs)
    elif args.action == "verify" and args.cfg:
        folder, rows, error = cache_admin.verify_against_teacher(load_cfg(args.cfg, args.words), args.rows or ROWS)
        print(f"{folder}: {counted(rows, 'row')} compared, in agreement with the teacher{error and f' ({error})'}")
    else:
        for folder in args.words:
            if args.action == "verify":
                print(f"{folder}: {counted(cache_admin.verify(folder), 'intact row')}")
            else:
                cache_admin.delete(folder)
                print(f"{folder}: deleted")


def _parse():
    parser = Parser(__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    inspect = actions.add_parser("inspect", help="list caches, their content and size")
    inspect.add_argument("folder", nargs="?", default="teacher_cache", help="a cache, or a folder with several")
    prefill = actions.add_parser("prefill", help="compute the rows that runs of a config need; can be interrupted")
    prefill.add_argument("--cfg", required=True, help="a YAML file of the runs")
    prefill.add_argument("--epochs", type=int, help=(
        "only the rows of the first epochs (default: all views; of a replay cache, all epochs of the config)"))
    prefill.add_argument("opts", nargs="*", metavar="KEY VALUE", help="overrides, such as DATASET.ROOT /data")
    verify = actions.add_parser("verify", help="check every row's checksum or, with --cfg, rows against the teacher")
    verify.add_argument("--cfg", help="a YAML file of the runs")
    verify.add_argument("--rows", type=int, help=f"with --cfg: number of random rows (default: {ROWS})")
    verify.add_argument("words", nargs="*", metavar="FOLDER", help="caches; with --cfg: overrides (KEY VALUE)")
    delete = actions.add_parser("delete", help="delete caches")
    delete.add_argument("words", nargs="+", metavar="FOLDER")
    args = parser.parse_args()
    if args.action == "verify" and not (args.cfg or args.words):
        verify.error("expected folders of caches (see inspect), or --cfg")
    if args.action == "prefill" and args.epochs is not None and args.epochs < 1:
        prefill.error("--epochs: expected at least 1")
    if args.action == "verify" and args.rows is not None and (args.rows < 1 or not args.cfg):
        verify.error("--rows: expected at least 1" if args.cfg else "--rows: only with --cfg; otherwise all are read")
    return args


def cli():
    run_command(main)


if __name__ == "__main__":
    cli()
