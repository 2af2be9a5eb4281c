"""The benchmark measures what its tables say, and writes them."""

import json
import mmap
import multiprocessing
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from mdistiller.bench import (
    cases,
    detection,
    measure,
    memory,
    ours,
    peer,
    reference,
    replay,
    scale,
    startup,
    together,
)
from mdistiller.bench.measure import Contestant, Settings, Table
from mdistiller.data.strong import OPERATIONS
from mdistiller.distillers.ea import ea_weight
from mdistiller.engine.setup import ALONE
from mdistiller.engine.sharing import Together
from mdistiller.errors import UserError
from mdistiller.registry import ea_name
from mdistiller.report.pages import marks
from tests.forked import run_tool

REPOSITORY = Path(__file__).resolve().parents[2]
TINY = Settings(repeats=2, seconds=0.0, batch=8, images=16, pairs=(("resnet8", "resnet8"),), quick=True)


@pytest.fixture(scope="module")
def source():
    return ours.read_source(TINY)[0]


def test_variants_take_turns_and_seconds_are_per_call():
    calls = []

    def work(name, seconds):
        def call():
            calls.append(name)
            time.sleep(seconds)

        return call

    contestants = [Contestant("slow", work("slow", 0.02)), Contestant("fast", work("fast", 0.002), multiple=3)]
    seconds = measure.take_turns(contestants, Settings(repeats=2, seconds=0.04))
    assert all(0.02 <= value < 0.2 for value in seconds["slow"]) and all(value >= 0.002 for value in seconds["fast"])
    turns = [name for before, name in zip(["", *calls], calls, strict=False) if name != before]
    # first calls of both, a turn of each, and a turn that starts with the other one
    assert turns == ["slow", "fast", "slow", "fast", "slow"]


def test_a_turn_fills_its_time_with_whole_multiples_of_calls_of_which_the_first_are_not_timed(monkeypatch):
    now, calls = [0.0], []
    monkeypatch.setitem(measure.CLOCKS, "wall", lambda: now[0])

    def work(name, seconds):
        def call():
            calls.append(name)
            now[0] += seconds

        return call

    contestants = [Contestant("slow", work("slow", 0.25), finish=lambda: calls.append("end")),
                   Contestant("fast", work("fast", 0.0625), multiple=3)]
    assert measure.take_turns(contestants, Settings(repeats=1, seconds=1.0)) == {"slow": [0.25], "fast": [0.0625]}
    # each time one call that is not timed; the first calls, those by which the number is chosen, and one turn of 1 s:
    # 1 / 0.25 = 4 calls, and 1 / 0.0625 = 16, as a multiple of three 18
    assert (calls.count("slow"), calls.count("fast")) == (2 + 2 + 5, 2 + 4 + 19)
    assert calls.count("end") == 1 and calls[-1] == "end"
    with pytest.raises(ZeroDivisionError):
        measure.take_turns([contestants[0], Contestant("fails", lambda: 1 / 0)], Settings(repeats=1))
    assert calls[-1] == "end"  # also when another one fails


def test_the_time_of_weights_is_the_difference_of_a_turn_for_each_view():
    seconds = {"step, plain": [0.1, 0.2], "step, weighted": [0.11, 0.22],
               "weights, plain": [0.001, 0.001], "weights, weighted": [0.003, 0.005]}
    # with two views 2 * (2 and 4) ms, of which the median is 6 ms of 150
    assert cases.weight_cells(seconds, views=2) == [
        "150.0 [100.0, 200.0]", "1.1000 [1.1000, 1.1000]", "6.000 [4.000, 8.000]", "4.00"]


def test_runs_that_share_a_cache_are_compared_with_all_runs_so_far(monkeypatch):
    monkeypatch.setattr(scale, "_timed_epochs", lambda step, epochs, settings: step.seconds)
    table = Table("", [])
    for seed, (fast, slow, misses) in enumerate([(2.0, 3.0, 40), (1.0, 3.0, 10)]):
        step = SimpleNamespace(seconds=fast, cache=SimpleNamespace(misses=misses, lookups=40))
        scale.add_runs(table, seed, "KD", step, SimpleNamespace(seconds=slow), 2, TINY)
    assert table.rows == [["0", "KD", "0.0", "2.00", "3.00", "1.50"], ["1", "KD", "75.0", "1.00", "3.00", "2.00"]]


def test_cells_show_the_median_and_the_extremes():
    assert measure.spread([3.0, 1.0, 2.0]) == "2.00 [1.00, 3.00]"
    assert measure.rates([0.1, 0.2, 0.4], images=64) == "320 [160, 640]"
    assert measure.ratios([1.0, 2.0], [2.0, 2.0]) == "1.50 [1.00, 2.00]"  # of the same turn


def test_the_reference_normalises_and_augments_every_image_in_pil(source):
    image = Image.fromarray(source.train_images[0])
    for view in (reference.weak_view(source), reference.strong_view(source)):
        assert view(image).shape == (3, 32, 32)
    for name, low, high in OPERATIONS:
        result = reference._OPERATIONS[name](image, (low + high) / 2)
        assert result.size == image.size and result.mode == "RGB", name
    image, strong, target, index = next(
        reference.reference_batches(source, 4, torch.device("cpu"), strong=True, workers=0)
    )
    assert image.shape == strong.shape == (4, 3, 32, 32)
    np.testing.assert_array_equal(source.train_labels[index], target)


def test_the_references_workers_start_as_those_of_a_program_of_its_own(source, monkeypatch):
    seen = []
    monkeypatch.setattr(reference, "DataLoader", lambda *words, **options: seen.append(options) or ["batch"])
    for workers in (2, 0):
        assert next(reference.reference_batches(source, 4, TINY.device, workers=workers)) == "batch"
    default = multiprocessing.get_all_start_methods()[0]  # not that of a spawned process, which is always "spawn"
    assert [options["multiprocessing_context"] for options in seen] == [default, None]


def test_the_references_weights_are_those_of_the_paper():
    logits = 3 * torch.randn(2, 16, 10, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(reference._ea_weight(*logits), ea_weight(*logits), rtol=1e-5, atol=1e-5)


def test_the_reference_and_ours_take_steps_and_a_warm_cache_spares_the_teacher(source, tmp_path):
    source = ours.shortened(source, TINY.images)
    data = ours.make_data(source, TINY)
    teacher = ours.make_teacher("resnet8", data, TINY)
    case = cases.Case(TINY.pairs[0], "EA-KD", source, data, teacher, TINY, tmp_path)
    steps = {kind: case._ours(kind) for kind in ("live", "cached", "alone", "folded")}
    stepped = steps["cached"]
    assert stepped.cache.misses == TINY.images  # filled beforehand
    for step in steps.values():
        before = step.trainer.distiller.student.fc.weight.clone()
        step()
        assert not torch.equal(step.trainer.distiller.student.fc.weight, before)
    assert stepped.cache.misses == TINY.images and stepped.cache.lookups > TINY.images
    batches = reference.reference_batches(source, 8, torch.device("cpu"), workers=0)
    step = reference.ReferenceStep(batches, ours.build_model("resnet8", 100), teacher, TINY.device, ea=True)
    step()
    assert step.number == 8 and np.isfinite(step.loss)


def test_steps_together_are_those_of_the_runs_one_by_one(source):
    data = ours.make_data(ours.shortened(source, TINY.images), TINY)
    teacher = ours.make_teacher("resnet8", data, TINY)
    made = {}
    for name, shared in (("alone", ALONE), ("together", Together())):
        runs = [ours.OurStep(data, teacher, TINY.pairs[0], kind, TINY, shared=shared) for kind in ("FITNET", "EA-AT")]
        steps = together.Steps(runs)
        steps(), steps()
        made[name] = [run.trainer.distiller.state_dict() for run in runs]
    for one, other in zip(made["alone"], made["together"], strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_the_time_of_the_weights_alone_is_measured_of_both_variants(source):
    data = ours.make_data(source, TINY)
    teacher = ours.make_teacher("resnet8", data, TINY)
    steps = (ours.OurStep(data, teacher, ("resnet8", "resnet8"), name, TINY) for name in ("KD", "EA-KD"))
    seconds = cases.time_weights(*steps, 8, 100, TINY)
    assert list(seconds) == ["step, plain", "step, weighted", "weights, plain", "weights, weighted"]
    assert len(cases.weight_cells(seconds)) == len(cases.EA_COLUMNS) - 1


def test_the_reference_step_runs_in_another_process_that_ends_with_it(source):
    teacher = ours.build_model("resnet8", 100).state_dict()
    step = reference.StepApart(source, ("resnet8", "resnet8"), teacher, 4, TINY.device, ea=False)
    step()
    assert step.process.is_alive()
    step.finish()
    assert step.process.exitcode == 0


def test_random_images_are_used_without_a_folder_and_named_in_the_output(source):
    text = ours.read_source(TINY)[1]
    metadata = measure.machine(TINY, text)
    assert "random" in text and "Random images are used" in measure.markdown(metadata, [])
    assert "Random images" not in measure.markdown(metadata | {"images": "CIFAR-100"}, [])
    of_this_process = measure.markdown(measure.machine(replace(TINY, clock="process"), text), [])
    assert "processor time" in of_this_process and "processor time" not in measure.markdown(metadata, [])
    assert ours.shortened(source, 10, num_classes=1000).num_classes == 1000
    for command, shown in (("bench.py ea", "python tools/bench.py ea"), ("mdistiller-bench ea", "mdistiller-bench ea")):
        assert f"with `{shown}` on" in measure.markdown(metadata | {"command": command}, [])


def test_memory_of_the_process_is_measured():
    before = memory.tree_bytes()
    block = mmap.mmap(-1, 50_000_000)  # pages that no earlier test has left behind
    block.write(bytes(50_000_000))
    assert memory.tree_bytes() == 0 or memory.tree_bytes() - before > 40e6
    block.close()


def test_the_share_of_a_process_is_read_in_units_of_1024_bytes(tmp_path):
    (tmp_path / "smaps_rollup").write_text("5581-7ffe [rollup]\nRss: 9000 kB\nPss: 2000 kB\nPss_Anon: 1500 kB\n")
    assert memory._proportional(tmp_path) == 2_048_000 and memory._proportional(tmp_path / "ended") == 0


def test_the_table_of_saved_passes_has_the_expected_numbers():
    rows = {row[0]: row[1:] for row in scale._passes_saved().rows}
    assert rows["240"] == ["52.2 %", "13.1 %", "5.6 %"]  # 162 (1 - (161/162)^240) / 240 = 0.522; / 4; (.. ^720) / 2880


def test_the_command_writes_markdown_json_and_the_page(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("\n".join(marks("bench")))
    words = ["cache", "--quick", "--repeats", "1", "--seconds", "0", "--images", "16", "--batch", "8", "--device"]
    words += ["cpu", "--pairs", "resnet8:resnet8", "--output", str(tmp_path / "out"), "--write", str(page)]
    done = run_tool("bench", words, REPOSITORY)
    assert done.returncode == 0, done.stderr
    assert "cache full, float16" in done.stdout and "cache full, float16" in page.read_text()
    content = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert content["machine"]["images"] == "16 random images of CIFAR-100's size"
    assert content["machine"]["command"].startswith("bench.py cache --quick")
    assert len(content["tables"][0]["seconds"]["teacher live"]) == 1


PUBLIC = {  # a code base with the interface that `peer` takes, whose steps write down what they got
    "engine/__init__.py": "from .trainer import BaseTrainer\ntrainer_dict = {'base': BaseTrainer}",
    "engine/cfg.py": """
from yacs.config import CfgNode
CFG = CfgNode({"DISTILLER": {"TYPE": "", "TEACHER": "", "STUDENT": ""}, "SOLVER": {"BATCH_SIZE": 1, "EPOCHS": 2},
               "LOG": {"PREFIX": "", "WANDB": True}})
""",
    "engine/trainer.py": """
from tensorboardX import SummaryWriter
class BaseTrainer:
    def __init__(self, name, distiller, loader, test_loader, cfg):
        self.distiller, self.loader, self.cfg, self.writer = distiller, loader, cfg, SummaryWriter("x")
    def train_epoch(self, epoch):
        for images, labels in self.loader:
            self.train_iter(images.cuda(), labels)
        validate()
    def train_iter(self, images, labels):
        print("printed, and no answer")
        with open(self.cfg.LOG.PREFIX + "/steps.txt", "a") as file:
            file.write(f"{tuple(images.shape)} {self.distiller(images).shape[1]}\\n")
""",
    "distillers/__init__.py": "from .KD import KD\ndistiller_dict = {'KD': KD}",
    "distillers/KD.py": """
from torch import nn
class KD(nn.Module):
    def __init__(self, student, teacher, cfg):
        super().__init__()
        self.teacher = teacher
    def forward(self, images):
        return self.teacher(images)
""",
    "models/__init__.py": "from .cifar import cifar_model_dict",
    "models/cifar/__init__.py": """
from torch import nn
def small(num_classes):
    return nn.Sequential(nn.AvgPool2d(16), nn.Flatten(), nn.Linear(12, num_classes))
cifar_model_dict = {"resnet8": (small, None)}
""",
    "dataset/__init__.py": "from .cifar100 import get_dataset",
    "dataset/cifar100.py": """
from torch.utils.data import DataLoader
from torchvision import datasets, transforms
def get_dataset(cfg):
    train, test = (datasets.CIFAR100(root="x", download=True, train=train, transform=transforms.ToTensor())
                   for train in (True, False))
    return DataLoader(train, cfg.SOLVER.BATCH_SIZE), DataLoader(test), len(train), 100
""",
}


def test_the_public_code_base_takes_its_own_steps_in_a_process_of_its_own(source, tmp_path):
    for name, text in PUBLIC.items():
        (tmp_path / "mdistiller" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mdistiller" / name).write_text(text)
    teacher = torch.nn.Sequential(torch.nn.AvgPool2d(16), torch.nn.Flatten(), torch.nn.Linear(12, 100)).state_dict()
    settings = Settings(batch=8, checkout=str(tmp_path))
    peer.check_checkout(settings.checkout)
    step = peer.PublicStep(source, ("resnet8", "resnet8"), teacher, settings)
    written = Path(step._folder.name, "steps.txt")
    assert not written.exists()  # it waits
    for _ in range(3):  # the second epoch begins with the third
        step()
    assert written.read_text() == 3 * "(8, 3, 32, 32) 100\n"
    step.finish()
    assert step.process.returncode == 0 and not written.exists()
    with pytest.raises(UserError, match="^--checkout: .*: its training ended: KeyError: 'resnet14'$"):
        peer.PublicStep(source, ("resnet14", "resnet8"), teacher, settings)


def test_another_folder_is_no_checkout_of_the_public_code_base(tmp_path):
    with pytest.raises(UserError, match="^--checkout: .* mdistiller/engine/trainer.py is missing$"):
        peer.check_checkout(str(tmp_path))
    with pytest.raises(UserError, match="^--checkout: peer compares with"):
        peer.check_checkout(None)


def test_a_start_is_a_fresh_interpreter_and_every_run_a_new_one(monkeypatch, source):
    started = []
    monkeypatch.setattr(startup.subprocess, "run", lambda words, **options: started.append(words))
    (table,) = startup.bench_startup(TINY, source)
    assert [row[0] for row in table.rows] == ["import torch", "import mdistiller.engine.setup", "train --help",
                                              "train, 1 epoch of digits"]
    assert all(words[0] == sys.executable for words in started)
    names = [words[-1] for words in started if words[-2] == "EXPERIMENT.NAME"]
    assert len(names) == len(set(names)) == 2 + TINY.repeats  # untimed ones come first


def test_every_step_of_ea_and_detection_is_taken_and_weighed(source):
    data = ours.make_data(ours.shortened(source, TINY.images), TINY)
    teacher = ours.make_teacher("resnet8", data, TINY)
    steps = [ours.OurStep(data, teacher, TINY.pairs[0], name, TINY) for name in map(ea_name, cases.EA_BASELINES)]
    steps.append(detection._steps("ea_kd", TINY))
    for step in steps:
        before = next(step.trainer.distiller.student.parameters()).clone()
        step()
        assert not torch.equal(next(step.trainer.distiller.student.parameters()), before)
        cases._weighing(step, 8, step.trainer.data.info.num_classes + 1, TINY.device)()


@pytest.mark.slow
def test_every_case_runs_to_its_tables(source):
    for module, name in ((cases, "data"), (cases, "step"), (cases, "ea"), (memory, "memory"),
                         (scale, "scale"), (replay, "replay"), (detection, "detection"), (startup, "startup"),
                         (together, "together")):
        tables = getattr(module, f"bench_{name}")(TINY, source)
        assert tables and all(isinstance(table, Table) and table.rows for table in tables)
        assert all(len(row) == len(table.columns) for table in tables for row in table.rows)
