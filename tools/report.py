"""A folder of runs as one HTML page: python tools/report.py --runs output [--output report.html].

Tables, learning curves, sample weights over epochs, the figures of tools/figures.py, and for every number its config,
command, commit and log. The page is one file that needs no network.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, not an installed copy

from mdistiller.command import Parser, quiet_interrupts, run_command

quiet_interrupts()

from mdistiller.files import write_text
from mdistiller.report.html import report


def main():
    parser = Parser(__doc__)
    parser.add_argument("--runs", required=True, help="a folder that holds run folders, at any depth")
    parser.add_argument("--figures", default="figures", help="a folder of PNG figures, if there is one")
    parser.add_argument("--output", default="report.html")
    args = parser.parse_args()
    page, output = report(args.runs, args.figures), Path(args.output)
    write_text(output, page)
    print(f"{output}: {len(page.encode()) / 1e6:.1f} MB")


def cli():
    run_command(main)


if __name__ == "__main__":
    cli()
