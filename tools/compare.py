"""Compare the runs in a folder: python tools/compare.py output/quickstart.

One line per configuration: mean and standard deviation over its seeds, of the last and the best epoch, on the test set
(on validation images, where the run measures nothing else; the line then says so). The best epoch is chosen on the test
set unless the run has a validation split.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, not an installed copy

from mdistiller.command import Parser, quiet_interrupts, run_command

quiet_interrupts()

from mdistiller.errors import counted
from mdistiller.report.compare import comparison
from mdistiller.runs.folders import check_folder
from mdistiller.runs.keeping import keep_records
from mdistiller.runs.records import find_runs


def main():
    parser = Parser(__doc__)
    parser.add_argument("runs", help="a folder with run folders, at any depth")
    parser.add_argument("--keep", metavar="FOLDER", help="archive finished runs there, without weights")
    args = parser.parse_args()
    check_folder(args.runs, "runs")
    print(comparison(args.runs))
    if args.keep:
        print(f"{counted(keep_records(find_runs(args.runs, []), Path(args.keep)), 'run')} archived in {args.keep}")


def cli():
    run_command(main)


if __name__ == "__main__":
    cli()
