"""Evaluate a checkpoint or a run: python tools/eval.py -m resnet8x4 [-c FILE] [-d cifar100] | --run FOLDER.

Prints the task's metrics on the test set: top-1, top-5, cross-entropy and mean entropy for images, average precision
for detection, Rouge-L and the accuracy of tokens for texts. A detector's checkpoint is named by -c FILE --cfg FILE.
Accepts checkpoints of this project, of mdistiller and of the public teacher archives.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, not an installed copy

from mdistiller.command import Parser, quiet_interrupts, run_command

quiet_interrupts()

from mdistiller.errors import counted
from mdistiller.runs.records import metric_words

AS_TEACHER = "pretrain"  # mdistiller's word for the weights that a network has as a teacher
ABSENT = -1.0  # COCO's value of a metric without ground truth


def arguments():
    """The command line; the options of mdistiller's command of this name are among them."""
    parser = Parser(__doc__)
    parser.add_argument("-m", "--model", help="name of the network, such as resnet8x4")
    parser.add_argument("-c", "--checkpoint", "--ckpt", metavar="FILE", help=(
        "its checkpoint file (default, or pretrain: the one that the network would have as a teacher)"))
    parser.add_argument("-d", "--dataset", help="DATASET.TYPE (default: that of --cfg, or else cifar100)")
    parser.add_argument("-bs", "--batch-size", metavar="N", help="the same as DATASET.TEST.BATCH_SIZE N")
    parser.add_argument("--run", help="a run folder, whose last and best epochs are evaluated")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="overrides, such as DATASET.ROOT /data")
    parser.add_argument("--cfg", help="with -c: a YAML file with the network and the data set, such as a detector's")
    parser.add_argument("--results", metavar="FILE", help="detection: also write COCO's standard results (JSON)")
    args = parser.parse_intermixed_args()
    if args.checkpoint == AS_TEACHER:
        args.checkpoint = None
    named = args.checkpoint and (args.model or args.cfg) or args.model and not args.cfg
    if (args.model or args.checkpoint or args.cfg) if args.run else not named:
        parser.error("give either --run, or -m, or -c with --cfg")
    if args.run and args.dataset:
        parser.error("-d cannot be combined with --run, which is evaluated on its own data set")
    if args.batch_size is not None:
        args.opts = ["DATASET.TEST.BATCH_SIZE", args.batch_size, *args.opts]
    return args


def main():
    args = arguments()

    from mdistiller.engine.reopen import evaluate_checkpoint, evaluate_run

    if args.run:
        results = evaluate_run(args.run, args.opts, args.results)
    else:
        dataset = args.dataset or (None if args.cfg else "cifar100")
        found = evaluate_checkpoint(args.model, args.checkpoint, dataset, args.opts, args.cfg, args.results)
        results = {args.model or args.checkpoint: found}
    for name, result in results.items():
        print(f"{name}: {', '.join(words_of(result))}")


def words_of(result):
    """Each metric with its usual name, as text."""
    for metric, value in result.items():
        if metric == "entropy":
            yield f"mean entropy {value:.3f} nats"
        elif metric == "count":
            yield counted(value, "sample")
        elif value == ABSENT:
            yield f"{metric_words(metric)} -"
        else:
            yield f"{metric_words(metric)} {value:.4f}" if metric == "loss" else f"{metric_words(metric)} {value:.2f}"


def cli():
    run_command(main)


if __name__ == "__main__":
    cli()
