"""Try hostile values of every configuration key, and hostile records of runs, on what reads them.

python tests/fuzz.py --minutes 5

A try ends well with a result, a UserError or a RunError; any other exception is a fault, as is a message that is too
long. Everything happens in this process. A try is drawn from its number alone: --one keys:17 repeats it.
"""

import argparse
import contextlib
import copy
import io
import json
import logging
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

import torch
import yaml

from mdistiller.config import dump_cfg, load_cfg, public
from mdistiller.config.key import Key
from mdistiller.config.keys import GENERAL
from mdistiller.config.loading import method_keys
from mdistiller.distillers import DISTILLERS, build_distiller
from mdistiller.engine.device import out_of_memory_fails_the_run
from mdistiller.engine.optim import build_updater, learning_rate
from mdistiller.engine.run_folder import RunFolder
from mdistiller.errors import RunError, UserError
from mdistiller.models import build_model
from mdistiller.report.compare import comparison
from mdistiller.report.page import report
from mdistiller.runs.fill import fill
from mdistiller.runs.keeping import keep_records
from mdistiller.runs.language import scores_of
from mdistiller.runs.paper import covered_tables
from mdistiller.runs.records import find_runs
from mdistiller.runs.training import Training
from mdistiller.sweep.plan import Progress, current_state, plan_runs
from tests.hostile_values import DEEP, NUMBERS, OTHERS, TEXTS, Hexadecimal, any_digits, damaged
from tests.remembered import remember
from tests.report.support import make_run

LONGEST = 2000  # characters of a message
SECONDS = 60  # of computing, after which a try counts as hanging
PATIENCE = 10  # times as long for a try that waits: the machine may be busy
MEMORY = 12 << 30  # bytes of addresses, so that a size out of all proportion fails here and not the machine
SIDE, BATCH, CLASSES, IMAGES = 16, 2, 4, 12
STEPPING = 0.3  # part of the configurations that load for which a step is trained


def number(chance: random.Random, key: Key | None = None):
    """A number, often at a bound of the key or just beyond it."""
    bounds = [bound for bound in (key.least, key.above, key.most, key.below) if bound is not None] if key else []
    if bounds and chance.random() < 0.5:
        bound = chance.choice(bounds)
        return chance.choice((bound, bound + 1, bound - 1, bound * 0.999, bound * 1.001, bound / 2, float(bound)))
    if chance.random() < 0.3:
        return chance.choice((-1, 1)) * 10 ** chance.uniform(-40, 40)
    return chance.choice(NUMBERS)


def value(chance: random.Random, key: Key | None = None, depth: int = 0):
    """Any value that YAML or JSON can write, of the key's own kind more often than not."""
    kind = chance.random()
    if key and kind < 0.15 and key.choices:
        return chance.choice(key.choices)
    if kind < 0.5:
        return number(chance, key)
    if kind < 0.65:
        return chance.choice(TEXTS)
    if kind < 0.8 and depth < 3:
        return [value(chance, key, depth + 1) for _ in range(chance.choice((0, 1, 2, 3, 40)))]
    if kind < 0.9:
        return chance.choice(OTHERS)
    return copy.copy(key.default) if key else chance.randint(-10, 10)


class Keys:
    """A tree of some settings, loaded from a file or from overrides; where it loads, often one step of training."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.keys = {**GENERAL, **method_keys()}
        theirs = [*public.RENAMED, *public.WITHOUT_EFFECT, *public.ONE_VALUE, public.DEFAULTS_KEY, "_BASE_"]
        self.names = [*self.keys] * 4 + theirs
        self.owner = {method.config_key: name for name, method in DISTILLERS.items() if method.needs_teacher}
        torch.manual_seed(0)
        self.networks = build_model("resnet8", CLASSES), build_model("resnet8", CLASSES)
        self.info = {"name": "digits", "num_classes": CLASSES, "num_train": IMAGES, "image_size": SIDE,
                     "targets": torch.arange(IMAGES) % CLASSES}

    def attempt(self, chance: random.Random) -> Callable[[], object]:
        names = chance.choices(self.names, k=chance.choice((1, 1, 2)))
        said = {name: value(chance, self.keys.get(name)) for name in names}
        words = [(name, chance.choice((str, repr, lambda one: one))(one)) for name, one in said.items()]
        owner = self.owner.get(next(iter(said)).split(".")[0], chance.choice(sorted(self.owner.values())))
        base = {"DISTILLER.TYPE": owner, "DISTILLER.STUDENT": "resnet8", "DISTILLER.TEACHER": "resnet8"}
        form, stepping, harm = chance.random(), chance.random() < STEPPING, chance.random()

        def action():
            if form < 0.5:
                opts = [word for pair in (*base.items(), *words) for word in pair]
                self.use(load_cfg(None, opts), stepping)
            else:
                path = self.folder / "a.yaml"
                with any_digits():
                    path.write_bytes(self.text({**base, **said}, harm, chance))
                self.use(load_cfg(path), stepping)

        action.tried = f"{owner}: {words if form < 0.5 else said}"[:400]
        return action

    @staticmethod
    def text(said, harm, chance):
        with contextlib.suppress(ValueError, TypeError, RecursionError):
            said = public_tree(said)
        try:
            content = yaml.dump(said, Dumper=Hexadecimal).encode("utf-8", "surrogatepass")
        except Exception:  # what YAML cannot write is written as JSON or Python would
            content = repr(said).encode("utf-8", "surrogatepass")
        return damaged(content, chance) if harm < 0.2 else content

    def use(self, cfg, stepping):
        """What a run does with a configuration, without its data."""
        again = self.folder / "again.yaml"
        again.write_text(dump_cfg(cfg))
        if load_cfg(again) != cfg:
            raise AssertionError("the configuration that was written is read as another")
        learning_rate(cfg.SOLVER, 1, 0, 2)
        if stepping and cfg.TASK.TYPE in (None, "classification"):
            self.step(cfg)

    @out_of_memory_fails_the_run()
    def step(self, cfg):
        """One update of a method; a loss that is not finite is the trainer's to refuse."""
        student, teacher = map(copy.deepcopy, self.networks)
        torch.manual_seed(0)
        distiller = build_distiller(cfg, student, teacher, self.info)
        updater = build_updater(cfg, distiller, torch.device("cpu"))
        updater.set_learning_rate(learning_rate(cfg.SOLVER, 1, 0, 2))
        image, strong = torch.randn(2, BATCH, 3, SIDE, SIDE)
        _, losses = distiller(image=image, image_strong=strong, target=torch.tensor([0, 1]), index=torch.tensor([0, 1]),
                              epoch=2)
        if all(torch.isfinite(loss) for loss in losses.values()):
            updater.step(losses)


def public_tree(flat):
    tree: dict = {}
    for name, one in flat.items():
        *nodes, last = name.split(".")
        node = tree
        for word in nodes:
            node = node.setdefault(word, {})
        node[last] = one
    return tree


class Records:
    """Two finished runs, a file of one of them changed, and one of the commands that read such folders."""

    def __init__(self, folder: Path):
        self.root, self.kept = folder / "runs", folder / "kept"
        for seed, row in ((0, "KD"), (1, "KD"), (0, "EA-KD")):
            run = make_run(self.root, row, seed, 70.0 + seed)
            lines = [{"epoch": epoch, "test_top1": 50.0, "weight_mean": 1.0, "weight_std": 0.5} for epoch in (1, 2)]
            (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
            (run / "answers" / "best").mkdir(parents=True)
            scores = {"dolly": {"ngram6": {"rouge_l": 20.0, "rouge_l_std": 0.5, "examples": 9}}}
            (run / "answers" / "best" / "scores.json").write_text(json.dumps(scores))
        keep_records(find_runs(self.root), self.kept)
        in_runs = (path for pattern in ("any/0/*", "any/0/answers/*/*") for path in sorted(self.root.glob(pattern)))
        self.files = [path for path in (*in_runs, *sorted(self.kept.iterdir())) if path.is_file()]
        self.whole = {path: path.read_bytes() for path in self.files}
        self.run = self.root / "any" / "0"
        self.training = Training("configs/digits/kd/res20_res8.yaml", (), (f"LOG.PREFIX={folder}",))
        self.table = covered_tables(["2"])[0]
        self.readers = (self.compare, self.report, self.tables, self.sweep, self.resume, self.keep,
                        self.answers)

    def attempt(self, chance: random.Random) -> Callable[[], object]:
        path = chance.choice(self.files)
        content = self.changed(path, chance)
        root = self.kept if path.parent == self.kept else self.root
        reader = chance.choices(self.readers, (4, 1, 2, 2, 2, 1, 1))[0]

        def action():
            try:
                path.write_bytes(content)
                reader(root)
            finally:
                path.write_bytes(self.whole[path])

        action.tried = f"{reader.__name__} of {path.name}: {content[:300]!r}"
        return action

    def changed(self, path, chance):
        whole = self.whole[path]
        kind = chance.random()
        if kind < 0.2 or path.suffix == ".csv":
            return damaged(whole, chance)
        if kind < 0.3:
            one = chance.choice((*OTHERS, *NUMBERS, *TEXTS))
            return (chance.choice(DEEP) if chance.random() < 0.3 else json.dumps(one, default=str)).encode()
        if path.suffix == ".yaml":
            tree = yaml.safe_load(whole)
            self.spoil(tree, chance)
            with contextlib.suppress(Exception):
                return yaml.dump(tree, Dumper=Hexadecimal).encode("utf-8", "surrogatepass")
            return repr(tree).encode("utf-8", "surrogatepass")
        lines = whole.decode().splitlines() if path.suffix == ".jsonl" else [whole.decode()]
        place = chance.randrange(len(lines))
        tree = json.loads(lines[place])
        self.spoil(tree, chance)
        lines[place] = self.json_of(tree, chance)
        return "\n".join(lines).encode("utf-8", "surrogatepass")

    @staticmethod
    def json_of(tree, chance):
        text = json.dumps(tree, default=str)
        return text.replace('"deep"', chance.choice(DEEP[:2])).replace('"huge"', "9" * chance.choice((400, 5000)))

    @staticmethod
    def spoil(tree, chance):
        """Change, remove or add an entry, at any depth."""
        while True:
            key = chance.choice(sorted(tree)) if tree else "key"
            if not isinstance(tree.get(key), dict) or chance.random() < 0.2:
                break
            tree = tree[key]
        kind = chance.random()
        if kind < 0.1:
            tree.pop(key, None)
        elif kind < 0.2:
            tree[chance.choice(("epoch", "last_top1", "x" * 300, "", "sessions", "\ud800"))] = value(chance)
        else:
            tree[key] = chance.choice(("deep", "huge")) if kind < 0.3 else value(chance)

    def compare(self, root):
        comparison(root)

    def report(self, root):
        report(root)

    def tables(self, root):
        fill(self.table, find_runs(root))

    def sweep(self, root):
        (run,) = plan_runs([(self.training, 1)])
        progress = Progress(find_runs(root))
        progress.state(run)
        progress.seconds(run)
        object.__setattr__(run, "folder", self.run)
        current_state(run)

    def resume(self, root):
        cfg = load_cfg(None, ["LOG.PREFIX", str(self.root.parent), "EXPERIMENT.PROJECT", "runs/any",
                              "EXPERIMENT.NAME", "0"])
        folder = RunFolder.open(cfg, resume=True)
        folder.keep_metrics_before(2)
        folder.read_json("run.json"), folder.read_json("summary.json")

    def answers(self, root):
        for run in find_runs(root):
            scores_of(run)

    def keep(self, root):
        with tempfile.TemporaryDirectory() as place:
            keep_records(find_runs(root), Path(place))


class Hangs(BaseException):
    """A try takes too long; nothing that is tried catches it."""


def _hang(signal_number, frame):
    raise Hangs


def _limit(seconds):
    """Let `_hang` be called after so many seconds of computing, or `PATIENCE` times as many in all; never for 0."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.alarm(PATIENCE * seconds)


class Fuzz:
    """Cases of both kinds; `found` holds the first try of each different fault, `tally` how often each came."""

    def __init__(self, folder: Path, seed: int = 0):
        self.seed, self.folder, self.found, self.tally, self.tries = seed, folder, {}, Counter(), Counter()
        remember()
        self.kinds = {"keys": Keys(folder / "keys"), "records": Records(folder / "records")}
        (folder / "keys").mkdir(parents=True, exist_ok=True)

    def drawn(self, kind: str, number: int) -> Callable[[], object]:
        """The action of a try, which does not depend on those before it."""
        with any_digits():
            return self.kinds[kind].attempt(random.Random(f"{self.seed} {kind} {number}"))

    def attempt(self, kind: str, number: int) -> str | None:
        """One try; what is wrong with how it ended, or None."""
        action = self.drawn(kind, number)
        self.tries[kind] += 1
        _limit(SECONDS)
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                action()
            return None
        except (UserError, RunError) as error:
            if 0 < len(str(error)) <= LONGEST:
                return None
            wrong, place = f"a message of {len(str(error))} characters: {str(error)[:200]}", "message"
        except Hangs as error:
            place = _place(error)
            wrong = f"more than {SECONDS} seconds, {place}"
        except Exception as error:
            place = f"{type(error).__name__} {_place(error)}"
            wrong = f"{place}: {str(error)[:200]}"
        finally:
            _limit(0)
        self.tally[place] += 1
        if place not in self.found:
            self.found[place] = f"{kind}:{number}: {wrong}\n    {action.tried}"
            print(f"found {self.found[place]}", flush=True)
        return wrong

    def run(self, kinds, tries: int | None, seconds: float) -> None:
        """Both kinds in turn, until the tries or the time are over."""
        before = [signal.signal(number, _hang) for number in (signal.SIGALRM, signal.SIGPROF)]
        deadline = time.monotonic() + seconds
        number = 0
        while (tries is None or number < tries) and time.monotonic() < deadline:
            self.attempt(kinds[number % len(kinds)], number)
            number += 1
        for each, handler in zip((signal.SIGALRM, signal.SIGPROF), before, strict=True):
            signal.signal(each, handler)


def _place(error):
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/mdistiller/" in frame.filename]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "outside the package"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5, help="(default: %(default)s)")
    parser.add_argument("--tries", type=int, help="at most")
    parser.add_argument("--only", choices=("keys", "records"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--one", metavar="KIND:NUMBER", help="one try, with its traceback")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    fuzz = Fuzz(folder, args.seed)
    if args.one:
        kind, _, number = args.one.partition(":")
        action = fuzz.drawn(kind, number)
        print(action.tried)
        action()
        return 0
    started = time.monotonic()
    fuzz.run([args.only] if args.only else ["keys", "records"], args.tries, 60 * args.minutes)
    total, minutes = fuzz.tries.total(), (time.monotonic() - started) / 60
    each = ", ".join(f"{count} of {kind}" for kind, count in sorted(fuzz.tries.items()))
    print(f"{total} tries ({each}), {total / minutes:.0f} a minute; {len(fuzz.found)} different faults")
    for place, line in fuzz.found.items():
        print(f"\n{fuzz.tally[place]} times, first {line}")
    shutil.rmtree(folder)
    return 1 if fuzz.found else 0


if __name__ == "__main__":
    sys.exit(main())
