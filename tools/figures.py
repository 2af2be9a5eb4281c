"""Draw a figure of the paper from its measurements: python tools/figures.py --figure 2 --analysis analysis.

Reads the files of tools/analyze.py and writes figure_<n>.png and .pdf to --output. The figures gain_epochs, gain_weight
and gain_tuned show gains of studies and read the runs in --runs. Needs matplotlib, but not torch.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, not an installed copy

from mdistiller.command import Parser, quiet_interrupts, run_command

quiet_interrupts()

from mdistiller.errors import UserError
from mdistiller.report.figures import FIGURES, draw
from mdistiller.report.gain_figures import GAIN_FIGURES, draw_gains
from mdistiller.runs.records import readable_runs


def main():
    parser = Parser(__doc__)
    parser.add_argument("--figure", nargs="+", required=True, choices=[*FIGURES, *GAIN_FIGURES, "all"],
                        metavar="NAME", help="2, B1, gain_epochs, ...; or all (all measured figures)")
    parser.add_argument("--analysis", default="analysis", help="the --output of tools/analyze.py (default: analysis)")
    parser.add_argument("--runs", default="results",
                        help="for gain_...: a folder with run folders or archived runs (default: results)")
    parser.add_argument("--output", default="figures", help="folder for PNG and PDF (default: figures)")
    args = parser.parse_args()
    analysis, names = Path(args.analysis), list(dict.fromkeys(args.figure))
    if "all" in names:
        names = [name for name in FIGURES if (analysis / f"figure_{name}.json").is_file()]
        if not names:
            raise UserError(f"{analysis}: contains no measured figure; see python tools/analyze.py --help")
    runs = readable_runs(Path(args.runs)) if set(names) & set(GAIN_FIGURES) else []
    for name in names:
        output = Path(args.output)
        paths = draw_gains(name, runs, output) if name in GAIN_FIGURES else draw(name, analysis, output)
        print(f"figure {name}: {', '.join(map(str, paths))}", flush=True)


def cli():
    run_command(main)


if __name__ == "__main__":
    cli()
