"""Download public teachers: python tools/fetch_teachers.py cifar100 [--from cifar_teachers.tar] [--to DIR].

--list shows the available teachers; NAME --check verifies the files in the folder (with --data also their accuracy).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, not an installed copy

from mdistiller.command import Parser, run_command


def main():
    parser = Parser(__doc__)
    parser.add_argument("name", nargs="?", help="a set of teachers, such as cifar100")
    parser.add_argument("--list", action="store_true", help="show the sets, their teachers and accuracies")
    parser.add_argument("--check", action="store_true", help="verify the files in the folder, download nothing")
    parser.add_argument("--data", metavar="ROOT", help="with --check: DATASET.ROOT, to measure the accuracies")
    parser.add_argument("--from", dest="archive", metavar="ARCHIVE", help="a local copy of the archive")
    parser.add_argument("--to", metavar="DIR", help="the folder (default: checkpoints/ of this project)")
    parser.add_argument("--index", metavar="FILE", help="another index (default: checkpoints/index.json)")
    parser.add_argument("--allow-http", action="store_true", help="also allow unencrypted downloads over http")
    parser.add_argument("--convert", nargs=2, metavar=("detectron2", "FILE"),
                        help="convert a detector's file (.pkl, or .pth of a pair) into checkpoints in DIR/coco/")
    args = parser.parse_args()
    refuse_ignored(parser, args)
    if args.convert:
        return convert(parser, args)
    if not (args.name or args.list):
        parser.error("give a set of teachers, such as cifar100, or --list")

    from mdistiller.engine.log import start_logging
    from mdistiller.engine.teachers import archives as teachers
    from mdistiller.errors import UserError

    index = teachers.read_index(args.index or teachers.INDEX)
    folder = Path(args.to) if args.to else teachers.FOLDER
    chosen = [teachers.choose(index, args.name)] if args.name else list(index.values())
    if args.list:
        for each in chosen:
            print(f"{each.name}: {each.about}, {each.archive}, about {each.megabytes} MB")
            for url in each.urls:
                print(f"  {url}")
            for teacher in each.teachers:
                state = "present" if (folder / teacher.file).is_file() else "missing"
                print(f"  {teacher.name:12} top-1 {teacher.top1:.2f}  {state:9} {teacher.file}")
    elif args.check:
        bad = []
        for teacher, found, is_bad in teachers.check(chosen[0], folder, args.data):
            print(f"{teacher.name:12} {found}", flush=True)
            bad += [teacher.name] if is_bad else []
        if bad:
            raise UserError(f"{folder}: bad: {', '.join(bad)}; download them again with tools/fetch_teachers.py")
    else:
        start_logging()
        teachers.fetch(chosen[0], folder, args.archive, args.allow_http)


def refuse_ignored(parser, args):
    """Raise UserError for an option that would have no effect beside another one, or without one."""
    given = {"NAME": args.name, "--list": args.list, "--check": args.check, "--data": args.data,
             "--from": args.archive, "--index": args.index, "--allow-http": args.allow_http}
    for what, chosen, ignored in (
        ("--convert", args.convert, given),
        ("--list", args.list, ("--check", "--data", "--from", "--allow-http")),
        ("--check", args.check, ("--from", "--allow-http")),
        ("--from", args.archive, ("--allow-http",)),
    ):
        for option in ignored:
            if chosen and given[option]:
                parser.error(f"{what} cannot be combined with {option}")
    if args.data and not args.check:
        parser.error("--data: only with --check")


def convert(parser, args):
    """Convert a detector that was trained with another library, and print the written files."""
    kind, file = args.convert
    if kind != "detectron2":
        parser.error(f"--convert: expected detectron2 FILE, found {kind!r}")

    from mdistiller.engine.teachers.archives import FOLDER
    from mdistiller.engine.teachers.convert import convert_file

    for path in convert_file(file, args.to or FOLDER):
        print(path)


def cli():
    run_command(main)


if __name__ == "__main__":
    cli()
