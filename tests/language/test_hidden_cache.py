"""Stored hidden states of the teacher give the logits of a live teacher within rounding."""

import json

import numpy as np
import pytest
import torch

from mdistiller.engine.cache import admin
from mdistiller.engine.setup import build_run, train
from mdistiller.errors import UserError
from tests.engine.support import assert_same_weights
from tests.language.test_runs import fast_cfg

CACHE = ("TEACHER_CACHE.ENABLED", True, "GENERATION.EXAMPLES", 0)


def cached_cfg(folder, *opts):
    return fast_cfg(folder, "ea_fkl", *CACHE, "TEACHER_CACHE.DIR", str(folder / "cache"), *opts)


@pytest.mark.parametrize("dtype, allowed", [("float16", 2**-9), ("float32", 1e-5)])
def test_logits_from_stored_states_are_those_of_the_live_teacher_within_rounding(tmp_path, dtype, allowed):
    cfg = cached_cfg(tmp_path, "TEACHER_CACHE.DTYPE", dtype)
    cache, run = admin.open_for(cfg), build_run(cfg, torch.device("cpu"))
    batch = next(run.data.train_batches(1))
    task, teacher = run.task, run.distiller.teacher.eval()
    with torch.no_grad():
        live = task.run_teacher(teacher, batch).in_full().logits
        for _ in range(2):  # computed, then found
            rows = cache.rows(batch["index"].numpy())
            stored = task.run_teacher(teacher, batch | {"hidden_teacher": rows}).in_full().logits
            difference = ((stored - live).abs() / live.abs().amax(1, keepdim=True)).max()
            assert difference <= allowed
    assert cache.misses == len(live) and cache.lookups == 2 * len(live)
    assert cache.store.num_classes == teacher.width == 64


def test_a_run_does_not_depend_on_what_was_stored_and_never_runs_the_teachers_body_again(tmp_path, monkeypatch):
    cfg = cached_cfg(tmp_path)
    train(fast_cfg(tmp_path, "ea_fkl", *CACHE, "TEACHER_CACHE.DIR", str(tmp_path / "cache"), "EXPERIMENT.NAME", "a"))
    from mdistiller.engine.cache.hidden_cache import HiddenCache

    def never(self, number):
        raise AssertionError("the teacher ran")

    cfg.EXPERIMENT.NAME, cfg.TEACHER_CACHE.CHECK = "b", 0
    monkeypatch.setattr(HiddenCache, "compute", never)
    train(cfg)
    project = tmp_path / "distill"
    assert_same_weights(project / "a", project / "b")
    losses = [json.loads((project / name / "metrics.jsonl").read_text().splitlines()[-1]) for name in "ab"]
    assert losses[0]["train_kd"] == losses[1]["train_kd"] > 0


def test_the_cache_commands_work_on_stored_hidden_states(tmp_path):
    cfg = cached_cfg(tmp_path)
    cache = admin.prefill(cfg)
    number = int(cache.data.tokens.sum())
    assert len(cache.store.held()) == number
    text = admin.inspect(tmp_path / "cache")
    assert f"{number} of {number} rows (100.0 %)" in text and "tiny_2x64" in text
    assert admin.verify(cache.store.folder) == number
    with (cache.store.folder / "logits.bin").open("r+b") as file:
        file.seek(100)
        file.write(b"\x55\x55")
    with pytest.raises(UserError, match="1 of .* rows are damaged"):
        admin.verify(cache.store.folder)
    assert admin.verify_against_teacher(cfg, 8)[1] == 8


def test_another_teacher_has_another_store(tmp_path):
    cache = admin.prefill(cached_cfg(tmp_path))
    entries = np.arange(len(cache.store.held()))
    values, _ = cache.store.read(entries)
    folder = cache.store.folder
    for name in ("entries.bin", "logits.bin"):
        size = (folder / name).stat().st_size
        with (folder / name).open("r+b") as file:
            file.truncate(0)
            file.truncate(size if name == "logits.bin" else 0)
    fresh = admin.open_for(cached_cfg(tmp_path))
    fresh.store.write(entries, values[::-1])
    with pytest.raises(UserError, match="stored rows differ from the teacher's; delete it"):
        admin.open_for(cached_cfg(tmp_path))


def test_weights_over_all_tokens_run_the_teacher_in_every_step(tmp_path, capsys):
    train(cached_cfg(tmp_path, "EA.LEVEL", "prompt_and_response", "SOLVER.EPOCHS", 1))
    printed = capsys.readouterr().out
    assert "not used, the teacher runs in every step: EA.LEVEL prompt_and_response" in printed


@pytest.mark.parametrize("opts, says", [
    (("KIND", "replay"), "TEACHER_CACHE.KIND: replay is for augmented images"),
    (("TOPK", 4), "TEACHER_CACHE.TOPK: hidden states are stored whole; expected 0"),
])
def test_settings_for_images_are_refused_for_text(tmp_path, opts, says):
    with pytest.raises(UserError, match=says):
        admin.open_for(cached_cfg(tmp_path, f"TEACHER_CACHE.{opts[0]}", opts[1]))
