"""Write one HTML page about a folder of runs: python tools/report.py --runs output [--output report.html].

It contains sortable tables, interactive charts (gains with intervals, learning curves, accuracy against time, sample
weights over epochs), the figures of tools/figures.py, and for every number the config, command, commit and log of its
runs. The page is a single file that needs no network. tools/watch.py serves the same page while runs go on.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, not an installed copy

from mdistiller.command import Parser, quiet_interrupts, run_command

quiet_interrupts()

from mdistiller.files import write_text
from mdistiller.report.page import report
from mdistiller.runs.folders import check_folder


def main():
    parser = Parser(__doc__)
    parser.add_argument("--runs", required=True, help="a folder with run folders, at any depth")
    parser.add_argument("--figures", default="figures", help="a folder with figures, if any (default: figures)")
    parser.add_argument("--output", default="report.html", help="the page (default: report.html)")
    args = parser.parse_args()
    check_folder(args.runs)
    output = Path(args.output)
    write_text(output, report(args.runs, args.figures))
    print(f"{output}: {output.stat().st_size / 1e6:.1f} MB")


def cli():
    run_command(main)


if __name__ == "__main__":
    cli()
