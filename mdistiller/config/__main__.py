"""python -m mdistiller.config: write docs/config.md, with default, range and meaning of every key."""

from pathlib import Path

from mdistiller.command import Parser, run_command
from mdistiller.config.page import page
from mdistiller.errors import writing
from mdistiller.files import write_text
from mdistiller.places import HOME

PAGE = HOME / "docs" / "config.md"


def main():
    parser = Parser(__doc__)
    parser.add_argument("--output", type=Path, default=PAGE, help="the file to write")
    output = parser.parse_args().output
    with writing(output):
        write_text(output, page())


if __name__ == "__main__":
    run_command(main)
