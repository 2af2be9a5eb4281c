"""This project's training step beside that of the public mdistiller code base, of which a checkout is named."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from mdistiller.bench.cases import SETTLE, cache_folder
from mdistiller.bench.measure import Contestant, Settings, Table, rates, ratios, take_turns
from mdistiller.bench.ours import OurStep, make_data, make_teacher, shortened
from mdistiller.data.memory import ImageSource
from mdistiller.errors import UserError
from mdistiller.precision import has_fast_bf16

PROCESS = Path(__file__).with_name("peer_process.py")
PARTS = ("engine/trainer.py", "engine/cfg.py", "distillers/KD.py", "models/cifar/__init__.py", "dataset/cifar100.py")
PUBLIC = "public code, its own step"
BF16 = {"SOLVER.AMP": "bf16"}
KINDS = {  # row -> (method, from a cache, settings)
    "ours, teacher live": ("KD", False, {}),
    "ours, teacher live, bf16": ("KD", False, BF16),
    "ours, from the cache": ("KD", True, {}),
    "ours, from the cache, bf16": ("KD", True, BF16),
    "ours, student alone": ("NONE", False, {}),
}


def check_checkout(checkout: str | None) -> None:
    """Raise UserError unless `checkout` is a folder with the parts of the public code base that a step of KD takes."""
    if checkout is None:
        raise UserError("--checkout: peer compares with a checkout of the public mdistiller code base; name its folder")
    missing = [part for part in PARTS if not (Path(checkout) / "mdistiller" / part).is_file()]
    if missing:
        raise UserError(f"--checkout: {checkout}: expected a checkout of the public mdistiller code base; "
                        f"mdistiller/{missing[0]} is missing")


class PublicStep:
    """Each call is one step of the public code base's trainer in a process of its own, its data loader included."""

    def __init__(self, source: ImageSource, pair: tuple[str, str], teacher: dict, settings: Settings):
        """`teacher` is the state dict of pair[0]. Raises UserError when the process ends before its first step."""
        self.checkout = settings.checkout
        self._folder = tempfile.TemporaryDirectory(prefix="bench_peer_")
        folder = Path(self._folder.name)
        for split in ("train", "test"):
            np.save(folder / f"{split}_images.npy", np.ascontiguousarray(getattr(source, f"{split}_images")))
            np.save(folder / f"{split}_labels.npy", getattr(source, f"{split}_labels"))
        torch.save({key: value.cpu().contiguous() for key, value in teacher.items()}, folder / "teacher.pth")
        words = {"checkout": str(Path(settings.checkout).resolve()), "folder": str(folder), "pair": pair,
                 "batch": settings.batch}
        environment = dict(os.environ, **({"CUDA_VISIBLE_DEVICES": ""} if settings.device.type != "cuda" else {}))
        self._errors = open(folder / "errors.txt", "w+")
        self.process = subprocess.Popen(
            [sys.executable, str(PROCESS), json.dumps(words)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._errors, text=True, env=environment, cwd=folder)
        self._wait()

    def _wait(self):
        if self.process.stdout.readline() != "ready\n":
            self._errors.seek(0)
            said = [line for line in self._errors.read().splitlines() if line.strip()]
            self.finish()
            raise UserError(f"--checkout: {self.checkout}: its training ended: {said[-1] if said else 'no message'}")

    def __call__(self) -> None:
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        self._wait()

    def finish(self) -> None:
        """End the process and delete its files."""
        self.process.stdin.close()
        self.process.wait()
        self._errors.close()
        self._folder.cleanup()


def bench_peer(settings: Settings, source: ImageSource) -> list[Table]:
    """KD of every pair: the public code base's step in turns with ours; bf16 only where `has_fast_bf16`."""
    check_checkout(settings.checkout)
    fast = has_fast_bf16(settings.device)
    kinds = {name: kind for name, kind in KINDS.items() if fast or kind[2] is not BF16}
    notes = [] if fast else ["bf16 is left out: this device has no fast bf16 arithmetic."]
    return [_compare(pair, kinds, settings, source, notes) for pair in settings.pairs]


def _compare(pair, kinds, settings, source, notes):
    few = shortened(source, settings.images)  # the cache is filled for these
    data = make_data(few, settings)
    teacher = make_teacher(pair[0], data, settings)
    with cache_folder() as folder:
        def ours(method, cached, opts):
            return OurStep(data, teacher, pair, method, settings, cache=folder if cached else None, **opts)

        public = PublicStep(source, pair, teacher.state_dict(), settings)
        contestants = [Contestant(PUBLIC, public, settle=SETTLE, finish=public.finish)]
        contestants += [Contestant(name, ours(*kind)) for name, kind in kinds.items()]
        seconds = take_turns(contestants, settings)
    table = Table(
        f"Peer: KD {' -> '.join(pair)} beside the public code base, batch {settings.batch}",
        ["", "images a second", "times as fast as the public code"], notes=notes, seconds=seconds,
    )
    for name, values in seconds.items():
        table.rows.append([name, rates(values, settings.batch), ratios(values, seconds[PUBLIC])])
    return table
