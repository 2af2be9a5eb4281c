"""Measure the speed of what this project does beside a plain way to do it: python tools/bench.py all --root data.

data: augmented batches. step: training steps with the teacher live and from a cache. ea: what sample weights add.
cache: what filling and reading a teacher cache costs. memory: the peak. scale: images, classes, batch, runs that share
a cache. Contestants take turns; tables are printed as Markdown, and written with all times as JSON.
"""

import argparse
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, not an installed copy

from mdistiller.command import Parser, quiet_interrupts, run_command

quiet_interrupts()

from mdistiller.errors import writing
from mdistiller.report import pages

CASES = ("data", "step", "ea", "cache", "memory", "scale")


def main():
    args = _parse()

    from mdistiller.bench import cases, measure, memory, ours, scale
    from mdistiller.engine.device import choose_device

    changes = {key: getattr(args, key) for key in ("root", "repeats", "seconds", "batch", "images")}
    if args.quick:
        changes = {"repeats": 3, "seconds": 0.2, "images": 512} | {k: v for k, v in changes.items() if v is not None}
    changes = {key: value for key, value in changes.items() if value is not None}
    if args.pairs:
        changes["pairs"] = tuple(tuple(pair.split(":")) for pair in args.pairs)
    settings = measure.Settings(device=choose_device(args.device), quick=args.quick, **changes)
    source, text = ours.read_source(settings)
    facts, tables = measure.machine(settings, text), []
    with writing(args.output):  # before the work
        Path(args.output).mkdir(parents=True, exist_ok=True)
    if args.write:
        pages.parts_of(Path(args.write), "bench")
    for case in CASES if "all" in args.cases else args.cases:
        print(f"measuring {case} ...", file=sys.stderr)
        module = {"memory": memory, "scale": scale}.get(case, cases)
        tables += getattr(module, f"bench_{case}")(settings, source)
        measure.save(Path(args.output), facts, tables)  # what is there if the rest is interrupted
    print(measure.markdown(facts, tables))
    if args.write:
        pages.write_into(Path(args.write), "bench", measure.markdown(facts, tables))


def _parse():
    parser = Parser(__doc__)
    parser.add_argument("cases", nargs="+", choices=[*CASES, "all"], metavar="CASE", help=f"{', '.join(CASES)}, or all")
    parser.add_argument("--root", help="the folder that holds CIFAR-100 (without it: made-up images of its size)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    parser.add_argument("--quick", action="store_true", help="few turns of few calls: to see that it works")
    parser.add_argument("--repeats", type=_positive, help="turns of each contestant (default: 7)")
    parser.add_argument("--seconds", type=_seconds, help="the least length of a turn (default: 1.5)")
    parser.add_argument("--batch", type=_positive, help="images a batch (default: 64)")
    parser.add_argument("--images", type=_positive, help="training images that steps are measured on (default: 2048)")
    parser.add_argument("--pairs", nargs="+", type=_pair, metavar="TEACHER:STUDENT", help="such as resnet56:resnet20")
    parser.add_argument("--output", default="output/bench", help="where bench.md and bench.json go")
    parser.add_argument("--write", metavar="FILE", help="replace the tables of a document, such as docs/performance.md")
    return parser.parse_args()


def _positive(text):
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, found {text!r}")
    return int(text)


def _seconds(text):
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"expected seconds, 0 or more, found {text!r}")
    return number


def _pair(text):
    teacher, _, student = text.partition(":")
    if not (teacher and student) or ":" in student:
        raise argparse.ArgumentTypeError(f"expected TEACHER:STUDENT, found {text!r}")
    return text


def cli():
    run_command(main)


if __name__ == "__main__":
    cli()
