"""The ledger: numbers of every method, of short real runs and of every config, which a rebuilding must leave unchanged.

python tests/ledger.py                     compare this code with the stored numbers (made on the same kind of machine)
python tests/ledger.py --against REVISION  compare this code with a commit, on any machine
python tests/ledger.py --store [--only X]  store this code's numbers (of the entries whose name contains X)
python tests/ledger.py --only methods/KD   only the entries whose name contains the text

Entries `methods/...`: two steps of every registered method, plain and EA, with and without logit standardization:
losses as hexadecimal floats, hashes of gradients, weights and optimiser state. `runs/...`: short runs of
tools/train.py: metrics, summary and hashes of the tensors of latest.pth. `continued`: a run that an earlier version
was stopped in (tests/ledger_run) and that this one continues. `configs/...`: what every file of configs/ resolves to.
Floating-point numbers depend on the processor and on PyTorch, so stored numbers hold for the machine they name; keys
that are new in the configuration or in the records are no difference.
"""

import argparse
import contextlib
import hashlib
import io
import json
import os
import platform
import runpy
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

TREE = Path(os.environ.get("LEDGER_TREE", Path(__file__).resolve().parents[1]))  # the code that is measured
sys.path.insert(0, str(TREE))
os.environ["OMP_NUM_THREADS"] = "1"

import torch
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
STORED, STOPPED_RUN = HERE / "ledger.json", HERE / "ledger_run"
TIMES = {"seconds", "images_per_second", "wall_seconds"}
SMALL = ["DATASET.TYPE", "digits", "DISTILLER.TEACHER", "resnet14", "DISTILLER.STUDENT", "resnet8",
         "DISTILLER.TEACHER_CHECKPOINT", "random", "DATASET.TRAIN_FRACTION", 0.2, "SOLVER.BATCH_SIZE", 48,
         "DATASET.TEST.BATCH_SIZE", 256, "SOLVER.EPOCHS", 2, "SOLVER.LR_DECAY_STAGES", [1], "DEVICE", "cpu"]
RUNS = {
    "vanilla": ["DISTILLER.TYPE", "NONE"],
    "cache": ["DISTILLER.TYPE", "EA-KD", "TEACHER_CACHE.ENABLED", True],
    "accumulation": ["DISTILLER.TYPE", "EA-DKD", "SOLVER.ACCUMULATE", 3],
    "average": ["DISTILLER.TYPE", "KD", "SOLVER.EMA", 0.9],
    "validation": ["DISTILLER.TYPE", "EA-KD", "DATASET.VAL_FRACTION", 0.2, "LOG.ENTROPY_TRACE", 20],
    "bf16": ["DISTILLER.TYPE", "EA-REVIEWKD", "SOLVER.AMP", "bf16"],
    "two_views": ["DISTILLER.TYPE", "EA-MLD", "DISTILLER.LS", True],
    "crd": ["DISTILLER.TYPE", "CRD"],
    "fcfd": ["DISTILLER.TYPE", "EA-FCFD", "FCFD.WARMUP", 2],
    "adamw_cosine": ["DISTILLER.TYPE", "CTKD", "SOLVER.TYPE", "AdamW", "SOLVER.LR", 0.001, "SOLVER.SCHEDULE", "cosine",
                     "SOLVER.WARMUP_EPOCHS", 0.5, "SOLVER.CLIP_NORM", 1.0],
    "dot": ["DISTILLER.TYPE", "EA-KD", "SOLVER.TRAINER", "dot"],
    "simkd": ["DISTILLER.TYPE", "SIMKD"],
}
PROCESSES = {"two_processes": ["DISTILLER.TYPE", "EA-KD", "SOLVER.ACCUMULATE", 2]}
LONG = ["DISTILLER.TYPE", "EA-KD", "SOLVER.EPOCHS", 4, "SOLVER.EMA", 0.9, "EXPERIMENT.PROJECT", "p",
        "EXPERIMENT.NAME", "r", "DISTILLER.STUDENT", "tests/ledger_network.py:Tiny",
        "DISTILLER.TEACHER", "tests/ledger_network.py:Tiny"]  # what lies in STOPPED_RUN, stopped after two epochs


def digest(value) -> str:
    """Sixteen hexadecimal digits of the SHA-256 of every tensor and number in a nested value, in order."""
    total = hashlib.sha256()
    for leaf in leaves(value):
        if isinstance(leaf, torch.Tensor):
            total.update(f"{leaf.dtype} {tuple(leaf.shape)}".encode())
            total.update(leaf.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        else:
            total.update(repr(leaf).encode())
    return total.hexdigest()[:16]


def leaves(value):
    """Tensors and numbers of nested dicts and lists."""
    if isinstance(value, dict):
        for key in sorted(value, key=str):
            yield str(key)
            yield from leaves(value[key])
    elif isinstance(value, list | tuple):
        for child in value:
            yield from leaves(child)
    else:
        yield value


def method_entry(name: str, standardized: bool) -> dict:
    """Two steps of a method on two small networks."""
    from mdistiller.config import load_cfg
    from mdistiller.distillers import build_distiller
    from mdistiller.models import build_model

    torch.manual_seed(0)
    student, teacher = build_model("resnet8", 10), build_model("resnet14", 10)
    info = {"name": "digits", "num_classes": 10, "num_train": 40, "image_size": 32, "targets": torch.arange(40) % 10}
    cfg = load_cfg(None, ["DISTILLER.TYPE", name, "DISTILLER.LS", standardized])
    distiller = build_distiller(cfg, student, teacher, info)
    optimizer = torch.optim.SGD(distiller.learnable_parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    entry = {}
    for step in range(2):
        generator = torch.Generator().manual_seed(step)
        images = torch.randn(2, 6, 3, 32, 32, generator=generator)
        target = torch.randint(10, (6,), generator=generator)
        torch.manual_seed(step)
        batch = {"image": images[0], "image_strong": images[1], "target": target, "index": torch.arange(6) + 6 * step}
        logits, losses = distiller(**batch, epoch=step + 2)
        optimizer.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        entry[f"losses{step}"] = {key: float(loss.detach()).hex() for key, loss in losses.items()}
        entry[f"weights_of_samples{step}"] = digest(dict(distiller.monitor))
        entry[f"gradients{step}"] = digest({key: p.grad for key, p in distiller.named_parameters()})
        optimizer.step()
    entry["state"] = digest(distiller.state_dict())
    entry["teacher"] = digest(distiller.teacher.state_dict())
    entry["optimizer"] = digest([optimizer.state[p] for p in distiller.learnable_parameters() if p in optimizer.state])
    return entry


def run_entry(folder: Path) -> dict:
    """The files of a run without times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((folder / "summary.json").read_text())
    state = torch.load(folder / "latest.pth", weights_only=True)
    parts = {key: digest(list(tensors(state[key]))) for key in ("model", "updater", "average") if key in state}
    return {
        "metrics": [{key: value for key, value in line.items() if key not in TIMES} for line in lines],
        "summary": {key: value for key, value in summary.items() if key not in TIMES},
        **parts,
        "student": digest(torch.load(folder / "student_latest.pth", weights_only=True)["model"]),
    }


def tensors(value):
    return (leaf for leaf in leaves(value) if isinstance(leaf, torch.Tensor))


def train(folder: Path, options: list, resume: bool = False) -> Path:
    """A run of tools/train.py in this process; returns its folder."""
    words = ["train.py", "--cfg", os.devnull, *(["--resume"] if resume else []), *map(str, [*SMALL, *options])]
    words += ["LOG.PREFIX", str(folder / "out"), "TEACHER_CACHE.DIR", str(folder / "cache")]
    before, sys.argv = sys.argv, words
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            runpy.run_path(str(TREE / "tools" / "train.py"))["main"]()
    finally:
        sys.argv = before
    return next((folder / "out").glob("*/*"))


def train_in_two_processes(folder: Path, options: list) -> Path:
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
             str(TREE / "tools" / "train.py"), "--cfg", os.devnull, *map(str, [*SMALL, *options])]
    subprocess.run([*words, "LOG.PREFIX", str(folder / "out")], check=True, capture_output=True, cwd=TREE)
    return next((folder / "out").glob("*/*"))


def continue_run(folder: Path) -> Path:
    """Continue the stored run of an earlier version, in a copy."""
    shutil.copytree(STOPPED_RUN, folder / "out" / "p" / "r")
    return train(folder, LONG, resume=True)


def stop_run(folder: Path) -> None:
    """Store a run that is stopped after two of its four epochs, by this code."""
    interrupted = stop_after_two_epochs()
    with contextlib.suppress(interrupted):
        train(folder, LONG)
    kept = next((folder / "out").glob("*/*"))
    shutil.rmtree(STOPPED_RUN, ignore_errors=True)
    STOPPED_RUN.mkdir()
    for name in ("metrics.jsonl", "summary.json", "latest.pth"):
        shutil.copy(kept / name, STOPPED_RUN / name)
    config = (kept / "config.yaml").read_text()
    (STOPPED_RUN / "config.yaml").write_text(config.replace(str(folder), "output"))


def stop_after_two_epochs():
    """Make the trainer stop after its second epoch, as a signal does; returns what it raises."""
    from mdistiller.command import Interrupted
    from mdistiller.engine import trainer

    finish = trainer.Trainer._finish_epoch

    def stopping(self, record):
        if record["epoch"] == 2:
            self.stop_signal = 15
        finish(self, record)

    trainer.Trainer._finish_epoch = stopping
    return Interrupted


def config_entries() -> dict:
    """Dotted name -> value, of the defaults and of what every file of configs/ resolves to apart from them."""
    from mdistiller.config import get_cfg, load_cfg

    defaults = flatten(get_cfg())
    entries = {"configs": defaults}
    for path in sorted((TREE / "configs").rglob("*.yaml")):
        resolved = flatten(load_cfg(path))
        changed = {key: value for key, value in resolved.items() if key not in defaults or value != defaults[key]}
        entries[str(path.relative_to(TREE))] = changed
    return entries


def flatten(node, prefix=""):
    flat = {}
    for key, value in node.items():
        below = isinstance(value, dict)
        flat |= flatten(value, f"{prefix}{key}.") if below else {f"{prefix}{key}": json.loads(json.dumps(value))}
    return flat


def measure(only: str) -> dict:
    """Every entry whose name contains `only`, by name."""
    from mdistiller.distillers import DISTILLERS

    torch.set_num_threads(1)
    os.chdir(TREE)
    jobs = {f"methods/{name}{'+LS' if ls else ''}": lambda folder, name=name, ls=ls: method_entry(name, ls)
            for name in sorted(DISTILLERS) for ls in (False, True)}
    jobs |= {f"runs/{name}": lambda folder, options=options: run_entry(train(folder, options))
             for name, options in RUNS.items()}
    jobs |= {f"runs/{name}": lambda folder, options=options: run_entry(train_in_two_processes(folder, options))
             for name, options in PROCESSES.items()}
    if STOPPED_RUN.is_dir():
        jobs["continued"] = lambda folder: run_entry(continue_run(folder))
    entries = {}
    for name, job in tqdm([(name, job) for name, job in jobs.items() if only in name], disable=None):
        with tempfile.TemporaryDirectory() as folder:
            entries[name] = job(Path(folder))
    return entries | {name: entry for name, entry in config_entries().items() if only in name}


def machine() -> dict:
    """The environment on which the last bits of the numbers depend."""
    return {"torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability(), "system": platform.machine()}


def differences(expected: dict, found: dict, name: str = "") -> list[str]:
    """One line for each entry that differs from the expected one; new entries do not count."""
    if isinstance(expected, dict) and isinstance(found, dict):
        lines = []
        for key, value in expected.items():
            where = f"{name}: {key}" if name else key
            if key not in found:
                lines.append(f"{where} is missing (expected {value!r})"[:300])
            else:
                lines += differences(value, found[key], where)
        return lines
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        return [line for i, pair in enumerate(zip(expected, found, strict=True)) for line in
                differences(*pair, f"{name}[{i}]")]
    return [] if expected == found else [f"{name}: expected {expected!r}, found {found!r}"[:300]]


def config_differences(expected: dict, found: dict) -> list[str]:
    """As `differences`, for resolved trees, each stored as what differs from the defaults of its own version."""
    lines = []
    old, new = expected.get("configs", {}), found.get("configs", {})
    for name in [name for name in expected if name.startswith("configs") and name in found]:
        before, now = old | expected[name], new | found[name]
        lines += [f"{name}: {key}: expected {value!r}, found {now.get(key)!r}" for key, value in before.items()
                  if now.get(key) != value]
    return lines


def compare(expected: dict, found: dict, only: str) -> list[str]:
    """One line for every difference."""
    chosen = {name: entry for name, entry in expected.items() if only in name}
    rest = {name: entry for name, entry in chosen.items() if not name.startswith("configs")}
    gone = [f"{name} is not there any more" for name in chosen if name.startswith("configs/") and name not in found]
    return differences(rest, found) + gone + config_differences(chosen, found)


def measured_at(revision: str, only: str) -> dict:
    """The entries of another commit, measured in a separate working tree."""
    with tempfile.TemporaryDirectory() as folder:
        tree, result = Path(folder) / "tree", Path(folder) / "ledger.json"
        git = ["git", "-C", str(HERE.parent), "worktree"]
        subprocess.run([*git, "add", "--detach", "-q", str(tree), revision], check=True)
        try:
            for name in ("ledger_network.py", "ledger_run"):
                if (HERE / name).exists() and not (tree / "tests" / name).exists():
                    (shutil.copytree if (HERE / name).is_dir() else shutil.copy)(HERE / name, tree / "tests" / name)
            subprocess.run([sys.executable, __file__, "--output", str(result), "--only", only],
                           check=True, env=os.environ | {"LEDGER_TREE": str(tree), "PYTHONPATH": str(tree)})
            return json.loads(result.read_text())["entries"]
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", metavar="REVISION", help="compare with a commit instead of the stored numbers")
    parser.add_argument("--store", action="store_true", help=f"write the numbers to {STORED.name}")
    parser.add_argument("--stop", action="store_true", help="store a run that is stopped, for a later version")
    parser.add_argument("--output", metavar="FILE", help="write the numbers to a file")
    parser.add_argument("--only", default="", metavar="TEXT", help="only entries whose name contains this")
    args = parser.parse_args()
    if args.stop:
        torch.set_num_threads(1)
        os.chdir(TREE)
        with tempfile.TemporaryDirectory() as folder:
            stop_run(Path(folder))
        return 0
    stored = json.loads(STORED.read_text()) if STORED.is_file() else {"entries": {}}
    if not (args.against or args.store or args.output) and stored.get("machine") != machine():
        sys.exit(f"the stored numbers are of {stored.get('machine')}, this is {machine()}: use --against REVISION")
    found = measure(args.only)
    if args.store or args.output:
        kept = stored["entries"] if args.store and args.only else {}
        text = json.dumps({"machine": machine(), "entries": kept | found}, indent=1, sort_keys=True)
        Path(args.output or STORED).write_text(text + "\n")
        return 0
    lines = compare(measured_at(args.against, args.only) if args.against else stored["entries"], found, args.only)
    print("\n".join(lines) if lines else f"{len(found)} entries are equal")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
