"""Generate and score answers to instruction sets (Rouge-L): python tools/answers.py --run FOLDER --sets FILE ...

Answers are stored in FOLDER/answers as JSON Lines; an interrupted evaluation continues where it stopped. A set is given
as NAME=FILE, or as FILE, which also names it. Tables 7 and A3 use the defaults: five seeds, no repeated 6-grams.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, not an installed copy

from mdistiller.command import Parser, run_command
from mdistiller.errors import UserError


def main():
    parser = Parser(__doc__)
    parser.add_argument("--run", required=True, help="a run folder")
    parser.add_argument("--sets", nargs="+", required=True, metavar="[NAME=]FILE", help="JSON Lines of instructions")
    parser.add_argument("--seeds", nargs="+", type=int, default=[10, 20, 30, 40, 50], help=(
        "decoding seeds (default: 10 20 30 40 50)"))
    parser.add_argument("--ngram", type=int, default=6, help=(
        "length of n-grams that may not repeat (0: off; default: 6)"))
    parser.add_argument("--checkpoint", default="best", help=(
        "best (default), latest, epoch_<n>, start (the student before training), teacher, or copy (the copied input)"))
    parser.add_argument("--limit", type=int, help="examples of each set (default: all)")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="overrides, such as GENERATION.BATCH_SIZE 64")
    args = parser.parse_intermixed_args()
    sets = {}
    for entry in args.sets:
        name, _, file = entry.rpartition("=")
        name = name or Path(file).stem
        if name in sets:
            raise UserError(f"--sets: {sets[name]} and {file} are both named {name}; give NAME=FILE")
        sets[name] = Path(file)

    from mdistiller.engine.generation import evaluate_answers
    from mdistiller.engine.log import start_logging

    start_logging()
    scores = evaluate_answers(args.run, sets, args.seeds, args.ngram, args.checkpoint, args.limit, args.opts)
    for name, rules in scores.items():
        for rule, found in rules.items():
            spread = "" if found["rouge_l_std"] is None else f" (sd over {len(found['seeds'])} decoding seeds " \
                f"{found['rouge_l_std']:.2f})"
            print(f"{name}, {rule}: Rouge-L {found['rouge_l']:.2f}{spread}, exact {found['exact']:.2f}, "
                  f"{found['tokens']:.1f} tokens an answer ({found['examples']} examples)")


def cli():
    run_command(main)


if __name__ == "__main__":
    cli()
