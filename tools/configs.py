"""List the configs that come along: python tools/configs.py [WORD ...] [--copy FOLDER].

Only those whose names hold every word are listed, or copied with what they inherit from.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, not an installed copy

from mdistiller.command import Parser, quiet_interrupts, run_command

quiet_interrupts()

from mdistiller.config.files import chain
from mdistiller.errors import UserError, counted, writing
from mdistiller.files import write_text
from mdistiller.places import CONFIGS


def matching(words: list[str]) -> list[Path]:
    """Configs, relative to their folder, whose names hold every word. Raises UserError when none does."""
    names = sorted(path.relative_to(CONFIGS) for path in CONFIGS.rglob("*.yaml"))
    found = [name for name in names if all(word in str(name) for word in words)]
    if not found:
        folders = ", ".join(sorted({name.parts[0] for name in names}))
        raise UserError(f"command line: no config has {' and '.join(words)} in its name; there are {folders}")
    return found


def copy(names: list[Path], folder: Path) -> int:
    """Write the configs and what they inherit from below `folder`, under the same names; returns how many files.

    Raises UserError, before anything is written, when one is there already with another content.
    """
    sources = {Path(source).resolve() for name in names for source, _ in chain(CONFIGS / name)}
    texts = {folder / source.relative_to(CONFIGS): source.read_text() for source in sorted(sources)}
    for path, text in texts.items():
        if path.exists() and (not path.is_file() or path.read_text(errors="replace") != text):
            raise UserError(f"{path}: is there already and differs from the config that would be copied; move it away")
    for path, text in texts.items():
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, text)
    return len(texts)


def main():
    parser = Parser(__doc__)
    parser.add_argument("words", nargs="*", metavar="WORD", help="a part of the name, such as digits or ea_kd/")
    parser.add_argument("--copy", metavar="FOLDER", help="copy them there instead of listing them")
    args = parser.parse_intermixed_args()
    names = matching(args.words)
    if args.copy:
        print(f"{counted(copy(names, Path(args.copy)), 'file')} in {args.copy}")
    else:
        print(*names, sep="\n")


def cli():
    run_command(main)


if __name__ == "__main__":
    cli()
