"""Measure the speed of this project against a conventional implementation: python tools/bench.py all --root data.

data: augmented batches. step: training steps with a live and a cached teacher. ea: additional time for sample weights.
cache: cost of filling and reading a teacher cache. memory: peak memory. scale: images, classes, batch size, runs that
share a cache. replay: MLD, whose views never repeat, from stored logits. together: runs in one process that share the
teacher's passes, beside one by one. detection: steps of a detector on drawn digits, which need no --root. startup:
imports, a command's help, a run of one epoch. "all" leaves out two: peer, steps beside those of a --checkout of the
public mdistiller code base, and graphs, steps recorded as CUDA graphs. The compared variants take turns; tables are
printed as Markdown and saved with all times as JSON.
"""

import argparse
import importlib
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, not an installed copy

from mdistiller.command import Parser, quiet_interrupts, run_command

quiet_interrupts()

from mdistiller.errors import writing
from mdistiller.report import pages

USUAL = ("data", "step", "ea", "cache")  # in mdistiller.bench.cases; each of the others is a module of its name
CASES = (*USUAL, "memory", "scale", "replay", "together", "detection", "startup")
IN_PROCESS = ("replay", "ea", "cache", "together")
PEER, GRAPHS = "peer", "graphs"  # need --checkout, and CUDA: only when they are named
OF_IMAGES = ("root", "batch", "images", "pairs")  # options of all cases but these, which have networks of their own:
OWN_NETWORKS = ("detection", "startup")


def main():
    args = _parse()

    from mdistiller.bench import measure, ours, peer
    from mdistiller.engine.device import choose_device

    keys = ("root", "repeats", "seconds", "batch", "images", "clock", "checkout")
    changes = {key: getattr(args, key) for key in keys}
    if args.quick:
        changes = {"repeats": 3, "seconds": 0.2, "images": 512} | {k: v for k, v in changes.items() if v is not None}
    changes = {key: value for key, value in changes.items() if value is not None}
    if args.pairs:
        changes["pairs"] = tuple(tuple(pair.split(":")) for pair in args.pairs)
    settings = measure.Settings(device=choose_device(args.device), quick=args.quick, **changes)
    chosen = [*(CASES if "all" in args.cases else ()), *args.cases]
    chosen = [case for case in (*CASES, GRAPHS, PEER) if case in chosen]
    if PEER in chosen:
        peer.check_checkout(settings.checkout)
    source, text = ours.read_source(settings)
    metadata, tables = measure.machine(settings, text), []
    with writing(args.output):  # fail before the measurements if the folder cannot be written
        Path(args.output).mkdir(parents=True, exist_ok=True)
    if args.write:
        pages.parts_of(Path(args.write), "bench")
    for case in chosen:
        print(f"measuring {case} ...", file=sys.stderr)
        module = importlib.import_module(f"mdistiller.bench.{'cases' if case in USUAL else case}")
        tables += getattr(module, f"bench_{case}")(settings, source)
        measure.save(Path(args.output), metadata, tables)  # keeps the finished tables if a later case is interrupted
    print(measure.markdown(metadata, tables))
    if args.write:
        pages.write_into(Path(args.write), "bench", measure.markdown(metadata, tables))


def _parse():
    parser = Parser(__doc__)
    parser.add_argument("cases", nargs="+", choices=[*CASES, GRAPHS, PEER, "all"], metavar="CASE",
                        help=f"{', '.join(CASES)}, or all of these; {GRAPHS} (on CUDA), {PEER}")
    parser.add_argument("--root", help="the folder with CIFAR-100 (default: random images of the same size)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    parser.add_argument("--quick", action="store_true", help="few and short turns, only to test that it works")
    parser.add_argument("--repeats", type=_positive, help="turns of each variant (default: 7)")
    parser.add_argument("--seconds", type=_seconds, help="minimum length of a turn (default: 1.5)")
    parser.add_argument("--batch", type=_positive, help="images per batch (default: 64)")
    parser.add_argument("--images", type=_positive, help="training images used for steps (default: 2048)")
    parser.add_argument("--pairs", nargs="+", type=_pair, metavar="TEACHER:STUDENT", help="such as resnet56:resnet20")
    parser.add_argument("--clock", choices=("wall", "process"), help=(
        "process: processor time, for a busy machine (replay, ea, cache and together, on the CPU; default: wall)"))
    parser.add_argument("--checkout", metavar="DIR", help="for peer: a checkout of the public mdistiller code base")
    parser.add_argument("--output", default="output/bench", help="folder for the tables (default: output/bench)")
    parser.add_argument("--write", metavar="FILE", help="replace the tables of a document, such as docs/performance.md")
    args = parser.parse_args()
    if args.clock == "process" and not {*args.cases} <= {*IN_PROCESS}:
        parser.error(f"--clock process: only for {', '.join(IN_PROCESS)}, which start no other processes")
    if args.checkout and PEER not in args.cases:
        parser.error(f"--checkout: only for {PEER}")
    for name in OF_IMAGES:
        if getattr(args, name) is not None and {*args.cases} <= {*OWN_NETWORKS}:
            parser.error(f"--{name}: not for {' and '.join(OWN_NETWORKS)}, which have data and networks of their own")
    return args


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
