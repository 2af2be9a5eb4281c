"""Randomly damaged files: reading them gives a UserError or, if the damage is not noticed, a result.

No other exception may occur. Random settings are tested in config/test_loading.py.
"""

import dataclasses
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mdistiller.config import load_cfg
from mdistiller.data import build_data
from mdistiller.data.cifar import CIFAR100, read_cifar
from mdistiller.engine import checkpoints, setup
from mdistiller.engine.cache import admin as cache_admin
from mdistiller.engine.teachers.archives import read_index
from mdistiller.engine.teachers.unpack import extract
from mdistiller.engine.trainer import Trainer
from mdistiller.errors import UserError
from mdistiller.models import build_model
from mdistiller.report.compare import comparison
from mdistiller.report.figures import draw
from mdistiller.report.page import report
from mdistiller.traces import read_trace
from tests.data.support import config, write_folders
from tests.engine.support import small_cfg
from tests.wrong_inputs.saved import BASE, make_saved
from tests.wrong_inputs.weights import archive, index

ALLOWED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


def fuzz(examples):
    return settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=ALLOWED)


PLACE = st.one_of(st.floats(0, 1), st.floats(0, 0.02), st.floats(0.98, 1))  # often near both ends: headers
DAMAGE = st.one_of(
    st.tuples(st.just("cut"), PLACE, st.just(b"")),
    st.tuples(st.just("flip"), PLACE, st.binary(min_size=1, max_size=1)),
    st.tuples(st.just("overwrite"), PLACE, st.binary(min_size=1, max_size=64)),
    st.tuples(st.just("insert"), PLACE, st.binary(min_size=1, max_size=8)),
)


def damaged(content: bytes, damage) -> bytes:
    kind, place, new = damage
    start = int(place * len(content))
    if kind == "cut":
        return content[:start]
    if kind == "flip":
        new = bytes([(content[start : start + 1] or b"\0")[0] ^ (new[0] or 1)])
    return content[:start] + new + content[start + (0 if kind == "insert" else len(new)) :]


def reads_or_says_why(read):
    try:
        read()
    except UserError as error:
        assert str(error)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged") / "saved"
    make_saved(folder)
    return folder


@fuzz(60)
@given(damage=DAMAGE)
def test_the_checkpoint_of_a_student(damage, saved, tmp_path):
    """A file that still loads has the weights that were saved."""
    whole = saved / "runs/distill/ea/student_best.pth"
    (tmp_path / "a.pth").write_bytes(damaged(whole.read_bytes(), damage))
    network = build_model("resnet8", 10)

    def read():
        checkpoints.load_network(network, tmp_path / "a.pth", "resnet8")
        expected = checkpoints.load(whole)["model"]
        assert all(torch.equal(value, expected[key]) for key, value in network.state_dict().items())

    reads_or_says_why(read)


class Begun(Exception):
    """Contains a trainer that is ready for its first step."""


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    """The trainer of a run that has been interrupted within an epoch, and the content of its latest.pth."""
    folder = tmp_path_factory.mktemp("resumed")

    def steps(self):
        raise Begun(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "steps", steps)
        with pytest.raises(Begun) as begun:
            setup.train(small_cfg(folder))
    (ready,) = begun.value.args
    ready.distiller.train()
    for number, batch in enumerate(ready.batches()):
        if number == 2:
            break
        ready._step(batch)
    ready.state.save("latest.pth")
    return ready, (ready.folder / "latest.pth").read_bytes()


@fuzz(60)
@given(damage=DAMAGE)
def test_the_state_of_a_run_that_is_resumed(damage, trainer):
    ready, content = trainer
    (ready.folder / "latest.pth").write_bytes(damaged(content, damage))
    reads_or_says_why(ready.state.resume)


@fuzz(60)
@given(damage=DAMAGE, name=st.sampled_from(["train.bin", "test.bin", "fine_label_names.txt"]))
def test_binary_cifar(damage, name, tmp_path):
    layout = dataclasses.replace(CIFAR100, train_files=(("train.bin", 9),), test_files=(("test.bin", 5),))
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir(exist_ok=True)
    contents = {"train.bin": bytes(9 * 3074), "test.bin": bytes(5 * 3074),
                "fine_label_names.txt": b"\n".join(b"%d" % number for number in range(100))}
    for file, content in contents.items():
        (folder / file).write_bytes(damaged(content, damage) if file == name else content)
    reads_or_says_why(lambda: read_cifar(layout, tmp_path, download=False))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp"])
@pytest.mark.parametrize("size", [32, 72], ids=["in memory", "streamed"])
@fuzz(15)
@given(damage=DAMAGE)
def test_an_image_of_a_folder(damage, suffix, size, tmp_path):
    root = tmp_path / "images"
    if not root.exists():
        write_folders(root, per_class=(1, 1), classes=("a", "b"), suffix=suffix)
        shutil.copy(root / f"train/a/0{suffix}", tmp_path / "whole")
    (root / f"train/a/0{suffix}").write_bytes(damaged((tmp_path / "whole").read_bytes(), damage))
    opts = ("DATASET.ROOT", str(root), "DATASET.IMAGE_SIZE", size, "DATASET.NUM_WORKERS", 0)

    def read():
        data = build_data(config("DATASET.TYPE", "imagefolder", *opts), "cpu")
        list(data.train_batches(1))

    reads_or_says_why(read)


@fuzz(60)
@given(damage=DAMAGE)
def test_a_config(damage, tmp_path):
    (tmp_path / "a.yaml").write_bytes(damaged(BASE.encode(), damage))
    reads_or_says_why(lambda: load_cfg(tmp_path / "a.yaml"))


@fuzz(30)
@given(damage=DAMAGE, name=st.sampled_from(["config.yaml", "run.json", "summary.json", "metrics.jsonl", "train.log"]))
def test_the_records_of_a_run(damage, name, saved, tmp_path):
    run = tmp_path / "any" / "run"
    if not run.exists():
        shutil.copytree(saved / "runs/distill/ea", run, ignore=shutil.ignore_patterns("*.pth"))
    whole = (run / name).read_bytes()
    (run / name).write_bytes(damaged(whole, damage))
    reads_or_says_why(lambda: report(tmp_path) if name in ("metrics.jsonl", "train.log") else comparison(tmp_path))
    (run / name).write_bytes(whole)


@fuzz(40)
@given(damage=DAMAGE)
def test_a_trace_of_entropies(damage, saved, tmp_path):
    (tmp_path / "entropy_trace").mkdir(exist_ok=True)
    content = (saved / "runs/distill/ea/entropy_trace/epoch_1.npz").read_bytes()
    (tmp_path / "entropy_trace/epoch_1.npz").write_bytes(damaged(content, damage))
    reads_or_says_why(lambda: read_trace(tmp_path))


@fuzz(12)
@given(damage=DAMAGE, name=st.sampled_from(["figure_1.json", "figure_1_speed.csv"]))
def test_a_measurement(damage, name, saved, tmp_path):
    shutil.copytree(saved / "analysis", tmp_path / "analysis", dirs_exist_ok=True)
    (tmp_path / "analysis" / name).write_bytes(damaged((saved / "analysis" / name).read_bytes(), damage))
    reads_or_says_why(lambda: draw("1", tmp_path / "analysis", tmp_path / "figures"))


@fuzz(60)
@given(damage=DAMAGE, name=st.sampled_from(["metadata.json", "logits.bin", "entries.bin"]))
def test_a_teacher_cache(damage, name, saved, tmp_path):
    shutil.copytree(saved / "cache", tmp_path / "cache", dirs_exist_ok=True)
    (tmp_path / "cache" / name).write_bytes(damaged((saved / "cache" / name).read_bytes(), damage))
    reads_or_says_why(lambda: cache_admin.inspect(tmp_path))
    reads_or_says_why(lambda: cache_admin.verify(tmp_path / "cache"))


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
@fuzz(40)
@given(damage=DAMAGE)
def test_an_archive(damage, mode, tmp_path):
    content = archive(("t/a.pth", bytes(range(256)) * 9), ("t/b.txt", b"b"), mode=mode)
    (tmp_path / "a.tar").write_bytes(damaged(content, damage))
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        reads_or_says_why(lambda: extract(tmp_path / "a.tar", Path(folder)))


@fuzz(60)
@given(damage=DAMAGE)
def test_an_index_of_teachers(damage, tmp_path):
    (tmp_path / "i.json").write_bytes(damaged(index().encode(), damage))
    reads_or_says_why(lambda: read_index(tmp_path / "i.json"))


def test_a_run_needs_no_right_to_write_to_its_data(tmp_path):
    """No file below DATASET.ROOT is created, changed or removed."""
    root = write_folders(tmp_path / "images", per_class=(3, 2))
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    for path in (root, *root.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    opts = ("DATASET.TYPE", "imagefolder", "DATASET.ROOT", str(root), "DATASET.IMAGE_SIZE", 32, "SOLVER.EPOCHS", 1)
    setup.train(small_cfg(tmp_path / "runs", "NONE", *opts))
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    for path in (root, *root.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


