"""Fill the paper's tables from run folders: python tools/tables.py --table 2 [--runs output] [KEY VALUE ...].

Runs are found by their config, not by their names. A cell shows mean and standard deviation over seeds, of the last and
the best epoch, the paper's number, and the gain over the baseline method with a paired test. A cell without runs is
shown as missing, with the command that fills it. KEY VALUE: the overrides used for the runs, as for tools/sweep.py.
"""

import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, not an installed copy

from mdistiller.command import Parser, quiet_interrupts, run_command

quiet_interrupts()

from mdistiller.config.stated import as_overrides, stated
from mdistiller.errors import UserError
from mdistiller.report import formats
from mdistiller.report.language import language_blocks, language_csv
from mdistiller.report.layout import WIDEST, Grid, Paragraph, layout
from mdistiller.report.pages import write_into
from mdistiller.report.ranks import rank_blocks
from mdistiller.report.significance import RESAMPLED_WORDS, WORDS, power_lines
from mdistiller.report.study import load_studies, table
from mdistiller.runs.fill import EPOCHS, fill
from mdistiller.runs.folders import check_folder
from mdistiller.runs.language import SPEC as LANGUAGE
from mdistiller.runs.language import is_language, rows
from mdistiller.runs.paper import covered_tables, load_tables
from mdistiller.runs.records import readable_runs
from mdistiller.runs.training import SMOKE

DEFAULT_RUNS = "output"
LEAST_POINTS, MOST_POINTS = 0.001, 100  # of --power and --deviation
DIFFERENCES, DEVIATIONS = (0.1, 0.2, 0.3, 0.5, 1.0, 2.0), (0.1, 0.2, 0.3, 0.5, 1.0, 1.5)  # points, of --power


def main():
    parser = Parser(__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--table", nargs="+", metavar="NAME",
                      help="2, A1, ...; or all (but 7 and A3, of language models)")
    what.add_argument("--study", metavar="NAME", help="a study of this project, such as small")
    what.add_argument("--power", nargs="*", type=float, metavar="POINTS", help=(
        "number of seeds that detect a difference of this many points with 80 %% power, for each --deviation"))
    parser.add_argument("--runs", help=f"a folder with run folders, at any depth (default: {DEFAULT_RUNS})")
    parser.add_argument("--format", choices=formats.FORMATS, default="markdown", help="default: markdown")
    parser.add_argument("--epoch", choices=EPOCHS, default="last", help="epoch of the headline results (default: last)")
    parser.add_argument("--check", action="store_true", help=(
        "say of each cell whether the paper's number is within two standard deviations"))
    parser.add_argument("--deviation", nargs="+", type=float, metavar="POINTS", help=(
        f"deviations for --power (default: {' '.join(map(str, DEVIATIONS))})"))
    parser.add_argument("--ranks", action="store_true", help=(
        "in place of the tables, mean ranks of their methods over all pairs of networks"))
    parser.add_argument("--write", metavar="PAGE", help="also write the tables of a study between its marks in a page")
    parser.add_argument("--smoke", action="store_true", help="use the runs of a smoke sweep, on digits")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="overrides of all runs")
    args = parser.parse_intermixed_args()
    args.table = list(dict.fromkeys(args.table or ()))
    refuse_ignored(args, parser)
    if args.runs:
        check_folder(args.runs)
    extra = as_overrides(args.opts)
    if args.write and not args.study:
        raise UserError("--write: only tables of a --study can be written into a page; for --table use --format html")
    if args.power is not None:
        print(_power(args), end="")
        return
    if args.study:
        text = table(load_studies(extra)[args.study], readable_runs(args.runs or DEFAULT_RUNS))
        if args.write:
            untitled = text.partition("\n\n")[2]  # the page has a title of its own for it
            write_into(Path(args.write), args.study, untitled, explained=(WORDS, RESAMPLED_WORDS))
        print(text, end="")
        return
    if any(map(is_language, args.table)):
        print(_language(args, extra), end="")
        return
    tables = covered_tables(args.table)
    runs, commands = _runs(args, extra, SMOKE["prefix"], [each.name for each in tables])
    print(_text(args, [fill(each, runs, args.epoch, extra, args.smoke) for each in tables], commands), end="")


def refuse_ignored(args, parser):
    """Raise UserError for an option that would have no effect beside another one."""
    given = {"--runs": args.runs, "--format": args.format != "markdown", "--epoch": args.epoch != "last",
             "--check": args.check, "--ranks": args.ranks, "--smoke": args.smoke, "--deviation": args.deviation}
    tables = [name for name in given if name != "--deviation"]
    for what, chosen, ignored in (
        ("--study", args.study, {*given} - {"--runs"}),
        ("--power", args.power is not None, tables),
        ("--table", args.table, ["--deviation"]),
        ("--table of language models", any(map(is_language, args.table)), ("--epoch", "--check", "--ranks")),
        ("--format csv", args.format == "csv", ("--check", "--ranks")),
        ("--ranks", args.ranks, ["--check"]),
    ):
        for option in given:
            if chosen and given[option] and option in ignored:
                parser.error(f"{what} cannot be combined with {option}")


def _power(args):
    """How many seeds are needed, as a table."""
    for name, values in (("--power", args.power), ("--deviation", args.deviation or [])):
        if not all(LEAST_POINTS <= value <= MOST_POINTS for value in values):
            raise UserError(f"{name}: expected numbers from {LEAST_POINTS} to {MOST_POINTS}, in points; found "
                            f"{' '.join(map(str, values))}")
    head, rows, words = power_lines(args.power or DIFFERENCES, args.deviation or DEVIATIONS)
    return formats.markdown([Paragraph(words), Grid(head, tuple(rows), "Seeds needed")])


def _runs(args, extra, smoke_prefix, names):
    """(The runs of the folder that is meant, for each of the named tables the command that trains there)."""
    prefix = stated(None, extra).get("LOG.PREFIX")
    runs = readable_runs(args.runs or prefix or (smoke_prefix if args.smoke else DEFAULT_RUNS))
    words = [*(["--smoke"] if args.smoke else []), *map(shlex.quote, extra)]
    if args.runs and prefix is None:
        words.append(f"LOG.PREFIX={shlex.quote(args.runs)}")
    return runs, [" ".join(["python tools/sweep.py --table", name, *words]) for name in names]


def _language(args, extra):
    """The text of tables of language models."""
    others = [name for name in args.table if not is_language(name)]
    if others:
        raise UserError(f"--table: {' '.join(args.table)}: tables of language models cannot be combined with others")
    runs, commands = _runs(args, extra, LANGUAGE["smoke"]["prefix"], args.table)
    filled = [(load_tables()[name], rows(name, runs, extra, args.smoke), command)
              for name, command in zip(args.table, commands, strict=True)]
    if args.format == "csv":
        return language_csv(filled, args.smoke)
    return _printed(args, [block for each in filled for block in language_blocks(*each, args.smoke)])


def _text(args, filled, commands):
    pairs = list(zip(filled, commands, strict=True))
    if args.format == "csv":
        return formats.csv_text(pairs)
    widest = WIDEST if args.format == "markdown" else sys.maxsize
    if args.ranks:
        return _printed(args, rank_blocks(filled))
    return _printed(args, [block for table, command in pairs for block in layout(table, command, args.check, widest)])


def _printed(args, blocks):
    if args.format == "html":
        return formats.html_page(blocks, "Tables of the EA-KD paper, from run folders")
    return formats.markdown(blocks) if args.format == "markdown" else formats.latex(blocks)


def cli():
    run_command(main)


if __name__ == "__main__":
    cli()
