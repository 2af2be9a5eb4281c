"""Write docs/methods.md: every registered method, what it needs, and the pairs of Table 2 that it cannot run on."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, not an installed copy

from mdistiller.command import Parser, quiet_interrupts, run_command

quiet_interrupts()

from mdistiller.errors import UserError
from mdistiller.files import write_text
from mdistiller.places import HOME
from mdistiller.runs.paper import load_tables


def page() -> str:
    """The text of docs/methods.md."""
    from mdistiller.analysis.methods import methods_page

    columns = load_tables()["2"].columns
    return methods_page({name: (column["teacher"], column["student"]) for name, column in columns.items()})


def main():
    parser = Parser(__doc__)
    parser.add_argument("--output", type=Path, default=HOME / "docs" / "methods.md", help="the file to write")
    output = parser.parse_args().output
    if output.is_dir() or (output.parent.exists() and not output.parent.is_dir()):  # before the minute of the page
        raise UserError(f"{output}: cannot be written; expected a file in a folder")
    write_text(output, page())


def cli():
    run_command(main)


if __name__ == "__main__":
    cli()
