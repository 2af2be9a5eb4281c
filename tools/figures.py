"""Draw a figure of the paper from its measurements: python tools/figures.py --figure 2 --analysis analysis.

Reads the files of tools/analyze.py and writes figure_<n>.png and .pdf to --output. Needs matplotlib, but not torch.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, not an installed copy

from mdistiller.command import Parser, quiet_interrupts, run_command

quiet_interrupts()

from mdistiller.errors import UserError
from mdistiller.report.figures import FIGURES, draw


def main():
    parser = Parser(__doc__)
    parser.add_argument("--figure", nargs="+", required=True, choices=[*FIGURES, "all"], metavar="NAME",
                        help="2, B1, ...; or all (all measured figures)")
    parser.add_argument("--analysis", default="analysis", help="the --output of tools/analyze.py")
    parser.add_argument("--output", default="figures")
    args = parser.parse_args()
    analysis, names = Path(args.analysis), args.figure
    if "all" in names:
        names = [name for name in FIGURES if (analysis / f"figure_{name}.json").is_file()]
        if not names:
            raise UserError(f"{analysis}: contains no measured figure; see python tools/analyze.py --help")
    for name in names:
        print(f"figure {name}: {', '.join(map(str, draw(name, analysis, Path(args.output))))}", flush=True)


def cli():
    run_command(main)


if __name__ == "__main__":
    cli()
