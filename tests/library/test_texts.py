"""Causal language models of transformers in `distill`, and in the Trainer of transformers."""


import pytest
import torch
from torch import nn

from mdistiller.errors import UserError
from mdistiller.library import distill
from mdistiller.library.tasks import as_language_model
from mdistiller.losses import ea_weight

transformers = pytest.importorskip("transformers")
WORDS = 32
IDS = torch.randint(2, WORDS, (10, 6), generator=torch.Generator().manual_seed(1))
LABELS = IDS.masked_fill(torch.arange(6) < 2, -100)
ROWS = [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
        for ids, labels in zip(IDS, LABELS, strict=True)]
SMALL = {"vocab_size": WORDS, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
         "num_attention_heads": 2, "num_key_value_heads": 1, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}


def gpt(seed=0):
    torch.manual_seed(seed)
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=WORDS, n_positions=8, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=1,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))


def llama(seed=0, kind="Llama", **settings):
    torch.manual_seed(seed)
    config = getattr(transformers, f"{kind}Config")(**SMALL, **settings)
    return transformers.AutoModelForCausalLM.from_config(config)


class Adapted(nn.Module):
    """As peft's PeftModelForCausalLM around a model: `base_model` is a LoraModel, which contains the whole model."""

    class Lora(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, **inputs):
            return self.model.forward(**inputs)

        def __getattr__(self, name):
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(super().__getattr__("model"), name)

    def __init__(self, model):
        super().__init__()
        self.base_model = self.Lora(model)

    def get_base_model(self):
        return self.base_model.model

    def forward(self, **inputs):
        return self.base_model(**inputs)

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base_model"), name)


def trainer(folder, kd, **settings):
    arguments = transformers.TrainingArguments(
        str(folder), max_steps=2, per_device_train_batch_size=4, use_cpu=True, remove_unused_columns=False,
        label_names=["labels"], report_to="none", disable_tqdm=True, save_steps=1, **settings)
    return transformers.Trainer(kd, arguments, train_dataset=ROWS, eval_dataset=ROWS,
                                compute_metrics=lambda found: {"found": found})


@pytest.mark.skipif(torch.__version__ < (2, 6), reason="transformers resumes with PyTorch 2.6 or newer")
def test_a_trainer_saves_and_resumes_a_student_with_tied_weights(tmp_path):
    pytest.importorskip("accelerate")
    whole, resumed = (distill(gpt(), gpt(seed=1), "EA-KD") for _ in range(2))
    trainer(tmp_path, whole).train()
    trainer(tmp_path, resumed).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    student, before = resumed.student, gpt()
    assert student.lm_head.weight is student.transformer.wte.weight
    for name, value in whole.student.state_dict().items():
        assert torch.equal(student.state_dict()[name], value), name
    assert not torch.equal(student.lm_head.weight, before.lm_head.weight)


@pytest.mark.parametrize("chunk", [0, 3])
def test_a_mean_over_sequences_is_that_of_each_texts_own_means(chunk):
    student, teacher = gpt(), gpt(seed=1)
    labels = LABELS[:3].masked_fill(torch.arange(6) < torch.tensor([[0], [4], [6]]), -100)  # 4, 2 and no tokens
    kd = distill(student, teacher, "EA-KD", LM_REDUCTION="sequence", LM_LOSS_CHUNK=chunk, EA_LEVEL="sequence")
    whole = kd(input_ids=IDS[:3], labels=labels).losses
    alone = [kd(input_ids=IDS[row : row + 1], labels=labels[row : row + 1]).losses for row in (0, 1)]
    for name, loss in whole.items():
        torch.testing.assert_close(loss, (alone[0][name] + alone[1][name]) / 2)


@pytest.mark.parametrize("left, right", [(0, 0), (0, 2), (2, 0)])
def test_the_last_token_of_a_text_predicts_nothing_and_counts_in_no_weight(left, right):
    """As in a run, whose batches hold the texts without their last tokens."""
    student, teacher = gpt(), gpt(seed=1)
    for network in (student, teacher):  # confident at some tokens
        network.lm_head.weight.data.mul_(50)
    kd = distill(student, teacher, "EA-FKL", EA_LEVEL="prompt_and_response", EA_TEMPERATURE=2.0)
    logits = [network(IDS[:1]).logits[0, :-1] for network in (student, teacher)]
    expected = ea_weight(*logits, 2.0, group=torch.zeros(5, dtype=torch.int64))
    ids, labels, mask = (nn.functional.pad(rows, (left, right), value=value) for rows, value in (
        (IDS[:1], 0), (LABELS[:1], -100), (torch.ones_like(IDS[:1]), 0)))
    for kind in (torch.int64, torch.bool, torch.float32):  # of masks that people have
        weight = kd(input_ids=ids, labels=labels, attention_mask=mask.to(kind)).weight
        torch.testing.assert_close(weight, expected[:4])  # four tokens have a label


def test_settings_of_texts_are_none_of_images():
    with pytest.raises(UserError, match="LM_REDUCTION is no setting of KD"):
        distill(nn.Linear(4, 3), nn.Linear(4, 3), "KD", LM_REDUCTION="sequence")


def test_a_trainers_metrics_get_the_logits_of_all_tokens(tmp_path):
    pytest.importorskip("accelerate")
    kd = distill(llama(), llama(seed=1), "EA-KD", LM_LOSS_CHUNK=3)
    found = trainer(tmp_path, kd, per_device_eval_batch_size=8).evaluate()  # the last batch has two texts
    with torch.no_grad():
        expected = kd.student(input_ids=IDS, labels=LABELS)
    torch.testing.assert_close(torch.as_tensor(found["eval_found"].predictions), expected.logits)
    assert found["eval_found"].label_ids.shape == IDS.shape
    assert found["eval_loss"] == pytest.approx(expected.loss.item(), abs=1e-5)
    torch.testing.assert_close(kd(IDS).logits, expected.logits)  # without labels


@pytest.mark.parametrize("kind, settings", [
    ("Granite", {"logits_scaling": 8.0}), ("Cohere", {}), ("Gemma2", {"head_dim": 4}),
])
def test_models_whose_logits_are_not_those_of_their_head_are_refused(kind, settings):
    model = llama(kind=kind, **settings)
    with torch.device("meta"), pytest.raises(UserError, match="its logits are not those of its head"):
        as_language_model(model)  # tensors of the probe are on the device of the model, not on the default one


def test_models_of_masked_tokens_are_refused_and_those_without_a_cache_are_not():
    bert = transformers.DistilBertForMaskedLM(transformers.DistilBertConfig(vocab_size=WORDS, dim=8, n_layers=1,
                                                                            n_heads=2, hidden_dim=8))
    with pytest.raises(UserError, match="^DistilBertForMaskedLM predicts masked tokens, not the next one"):
        distill(bert, None, "EA-KD")
    oldest = transformers.OpenAIGPTLMHeadModel(transformers.OpenAIGPTConfig(vocab_size=WORDS, n_embd=8, n_layer=1,
                                                                            n_head=2))
    stored = torch.zeros(int((LABELS[:, 1:] != -100).sum()), WORDS)
    for _ in range(2):  # the second time, the first has left its configuration as it was
        assert distill(oldest, None, "EA-KD")(IDS, LABELS, teacher_logits=stored).loss > 0


def test_a_causal_model_that_cannot_generate_is_one():
    class Causal(transformers.GPT2LMHeadModel):  # as one's own model that is no GenerationMixin
        can_generate = classmethod(lambda cls: False)

    config = transformers.GPT2Config(vocab_size=WORDS, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    assert distill(Causal(config), Causal(config), "EA-KD")(IDS, LABELS).loss > 0


def test_a_model_without_numbers_is_not_probed():
    with torch.device("meta"):
        assert as_language_model(llama()).vocabulary == WORDS


def test_a_model_with_adapters_is_distilled_like_any_other():
    batch = {"input_ids": IDS, "labels": LABELS}
    expected = distill(llama(), llama(seed=1), "EA-KD")(**batch)
    for student, teacher in ((Adapted(llama()), llama(seed=1)), (llama(), Adapted(llama(seed=1)))):
        assert torch.equal(distill(student, teacher, "EA-KD")(**batch).loss, expected.loss)


def test_token_types_are_dropped_where_no_model_reads_them():
    extra = {"token_type_ids": torch.zeros_like(IDS)}
    kd = distill(llama(), llama(seed=1), "EA-KD")
    assert torch.equal(kd(**extra, input_ids=IDS, labels=LABELS).loss, kd(input_ids=IDS, labels=LABELS).loss)
    with pytest.raises(UserError, match="^a language model is given input_ids, attention_mask and labels; found token"):
        distill(gpt(), gpt(seed=1), "KD")(**extra, input_ids=IDS)  # GPT-2 adds their embeddings
    with pytest.raises(UserError, match="^a language model is given one text a row, .* found position_ids"):
        kd(input_ids=IDS, position_ids=IDS)
