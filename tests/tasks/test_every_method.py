"""Every method in every task: it trains a step, or one line refuses it before anything is read or run."""

import pytest
import torch

from mdistiller.config import load_cfg
from mdistiller.data import build_data
from mdistiller.distillers import DISTILLERS, build_distiller
from mdistiller.engine.setup import build_run
from mdistiller.errors import UserError
from mdistiller.tasks import build_task
from tests.detection.support import SMALL, write_coco
from tests.language.support import TINY

HOSTS = sorted(name for name, method in DISTILLERS.items() if method.needs_teacher and not method.weighted)
WITHOUT_A_MAP = {"AT", "CATKD", "FCFD", "FITNET", "KDSVD", "NST", "OFD", "SDD", "SIMKD", "SP", "VID"}
TWO_VIEWS = {"CRLD", "MLD"}
REFUSED = {
    "detection": WITHOUT_A_MAP - {"FCFD"} | TWO_VIEWS | {"CRD", "PAD", "PKT", "RKD", "WKD"},
    "language": WITHOUT_A_MAP | TWO_VIEWS | {"CRD", "REVIEWKD"},
}


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    return write_coco(tmp_path_factory.mktemp("coco"))


@pytest.fixture(scope="module")
def parts(coco):
    """Task -> (base file, overrides, data, student, teacher, a batch), made once."""
    found = {}
    for kind, base, opts in (("detection", None, [*SMALL, "DATASET.ROOT", str(coco)]),
                             ("language", "configs/words/base.yaml", [*TINY])):
        cfg = load_cfg(base, opts)
        data = build_data(cfg, "cpu")
        task = build_task(cfg, data.info)
        torch.manual_seed(0)
        networks = task.network("STUDENT"), task.network("TEACHER").eval()
        found[kind] = base, opts, data, *networks, next(iter(data.train_batches(1)))
    return found


@pytest.mark.parametrize("name", HOSTS)
@pytest.mark.parametrize("kind", REFUSED)
def test_a_method_trains_a_step_or_is_refused_when_it_is_built(parts, kind, name):
    base, opts, data, student, teacher, batch = parts[kind]
    cfg = load_cfg(base, [*opts, "DISTILLER.TYPE", f"EA-{name}"])

    def build():
        return build_distiller(cfg, student, teacher, data.info, build_task(cfg, data.info))

    if name in REFUSED[kind]:
        words = f"DISTILLER.TYPE: {name} needs .*, which {kind} does not offer; expected one of "
        with pytest.raises(UserError, match=words) as error:
            build()
        named = set(str(error.value).partition("expected one of ")[2].split(", "))
        assert named == set(HOSTS) - REFUSED[kind] and "\n" not in str(error.value)
        return
    distiller = build()
    assert distiller.weighted and not DISTILLERS[name].suited(distiller.task).weighted
    student.zero_grad()
    _, losses = distiller(**{key: value for key, value in batch.items() if key != "share"}, epoch=1)
    loss = sum(losses.values())
    loss.backward()
    assert torch.isfinite(loss) and (distiller.monitor["weight"] != 1).any()
    assert sum(p.grad.abs().sum() for p in distiller.student.parameters() if p.grad is not None) > 0


@pytest.mark.parametrize(("opts", "words"), [
    (["DISTILLER.TYPE", "MLD"], "MLD needs a second view of each image, which detection does not offer"),
    (["SOLVER.LABEL_SMOOTHING", 0.1], "LABEL_SMOOTHING: not available for detection; expected 0, found 0.1"),
])
def test_a_detection_run_refuses_what_it_cannot_do_before_it_reads_a_teacher(coco, opts, words):
    cfg = load_cfg(None, [*SMALL, "DATASET.ROOT", str(coco), "DISTILLER.TEACHER_CHECKPOINT", "missing.pth", *opts])
    with pytest.raises(UserError, match=words):
        build_run(cfg, torch.device("cpu"))
