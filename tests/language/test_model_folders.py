"""Models of transformers that others made: damaged, with weights that do not fit, with code or logits of their own."""

import json
import logging

import pytest
import torch

from mdistiller.data.tokenizers import load_tokenizer, word_tokenizer
from mdistiller.errors import UserError
from mdistiller.models.language import CAPS, build_language_model, check_head, keep_layers

safetensors = pytest.importorskip("safetensors.torch")
WEIGHTS, CONFIG = "model.safetensors", "config.json"
EMBEDDING, LAYER = "transformer.wte.weight", "transformer.h.0.mlp.c_fc.weight"


@pytest.fixture
def folder(tmp_path):
    """A folder with a model and a tokenizer, and a Python file that creates `harmed` when it is imported."""
    place = tmp_path / "model"
    build_language_model("tiny_1x16", 8).inner.save_pretrained(place)
    word_tokenizer(["a", "b"]).save_pretrained(place)
    (place / "evil.py").write_text(f"open({str(tmp_path / 'harmed')!r}, 'w')\n")
    return place


def halved(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:60])


def content(name, data):
    return lambda folder: (folder / name).write_bytes(data)


def settings(name, **changes):
    return lambda folder: (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | changes))


def state(change):
    def changed(folder):
        tensors = change(safetensors.load_file(folder / WEIGHTS))
        safetensors.save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    return changed


def without(name):
    return lambda state: {key: value for key, value in state.items() if key != name}


OWN_CODE = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}}
DAMAGED = {  # what is wrong -> (how, what the error says)
    "weights cut off": (halved(WEIGHTS), "no language model"),
    "weights of nothing": (content(WEIGHTS, b""), "no language model"),
    "a pointer of Git LFS": (content(WEIGHTS, b"version https://git-lfs.github.com/spec/v1\n"), "no language model"),
    "a config cut off": (halved(CONFIG), "no language model"),
    "no heads": (settings(CONFIG, n_head=0), "no language model"),
    "layers that are a word": (settings(CONFIG, n_layer="two"), "no language model"),
    "code of its own": (settings(CONFIG, **OWN_CODE), "contains custom code"),
    "a weight left out": (state(without(LAYER)), f"its files lack 1 weight of the network ({LAYER}, ...)"),
    "names of a wrapper": (state(lambda state: {f"x.{key}": value for key, value in state.items()}),
                           " weights of the network ("),
    "another vocabulary": (settings(CONFIG, vocab_size=5), f"its files have other shapes for 1 weight of the "
                                                           f"network ({EMBEDDING}, ...)"),
    "NaN": (state(lambda state: state | {EMBEDDING: state[EMBEDDING] * torch.nan}), "its logits are not finite"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_pretrained_network_is_whole_or_refused_in_one_line(what, folder, monkeypatch):
    damage, words = DAMAGED[what]
    damage(folder)
    monkeypatch.setattr("builtins.input", lambda prompt: "y")  # whom transformers asks whether to run a folder's code
    with pytest.raises(UserError) as caught:
        build_language_model(str(folder), 8, pretrained=True)
    message = str(caught.value)
    assert words in message and str(folder) in message and "\n" not in message
    assert not (folder.parent / "harmed").exists()


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
@pytest.mark.parametrize("damage", [
    settings(CONFIG, **OWN_CODE), settings(CONFIG, n_layer="two"), settings(CONFIG, n_head=0),
    settings(CONFIG, vocab_size=0), settings(CONFIG, n_head=-1)])
def test_a_network_with_random_weights_runs_no_code_and_refuses_the_same_settings(damage, folder, monkeypatch):
    damage(folder)
    monkeypatch.setattr("builtins.input", lambda prompt: "y")
    with pytest.raises(UserError, match="no language model|cannot be run on 4 tokens"):
        build_language_model(str(folder), 8)
    assert not (folder.parent / "harmed").exists()


def test_a_tokenizer_runs_no_code_and_a_damaged_one_is_refused(folder, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda prompt: "y")
    changes = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.T", "evil.T"]}}
    settings("tokenizer_config.json", **changes)(folder)
    settings(CONFIG, n_layer="two")(folder)
    with pytest.raises(UserError, match="LM.TOKENIZER: no tokenizer"):
        load_tokenizer(str(folder))
    assert not (folder.parent / "harmed").exists()


@pytest.mark.parametrize("name, changes", [("tokenizer_config.json", {"model_max_length": []}), ("tokenizer.json", {
    "truncation": "x"})])
def test_settings_of_a_tokenizer_that_fail_in_use_are_named_at_once(name, changes, folder):
    settings(name, **changes)(folder)
    with pytest.raises(UserError, match="LM.TOKENIZER: no tokenizer"):
        load_tokenizer(str(folder))


def test_weights_without_a_place_are_told(folder, caplog):
    state(lambda state: state | {"value_head.weight": torch.zeros(2)})(folder)
    with caplog.at_level(logging.WARNING):
        build_language_model(str(folder), 8, pretrained=True)
    assert "the network has no place for 1 weight of its files (value_head.weight, ...)" in caplog.text


def test_a_student_cut_from_its_teacher_keeps_the_kind_of_each_layer_and_the_settings_of_generation():
    transformers = pytest.importorskip("transformers")
    kinds = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    network = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(
        vocab_size=8, hidden_size=16, intermediate_size=16, num_hidden_layers=4, num_attention_heads=1,
        num_key_value_heads=1, max_position_embeddings=32, use_sliding_window=True, sliding_window=8,
        layer_types=kinds))
    student = keep_layers(network, 3)
    assert student.config.layer_types == ["full_attention"] * 2 and network.config.layer_types == kinds
    assert student.generation_config is network.generation_config


@pytest.mark.parametrize("cap", CAPS)
def test_a_network_that_caps_its_logits_is_refused_although_small_logits_do_not_show_it(cap):
    network = build_language_model("tiny_1x16", 8)
    check_head(network, "mine")
    setattr(network.inner.config, cap, 30.0)
    with pytest.raises(UserError, match="mine: its logits are not those of its head"):
        check_head(network, "mine")
