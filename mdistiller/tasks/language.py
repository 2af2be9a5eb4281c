"""Language models: a sample is a supervised token, which is a token of an answer or the end-of-text token."""

import logging
import os
import shutil
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F

from mdistiller.config.words import shown
from mdistiller.data.tokenizers import find_tokenizer, first_difference
from mdistiller.distributed import sum_over_ranks
from mdistiller.errors import UserError, writing
from mdistiller.functional import kl_by_class, sequence_means, wide
from mdistiller.models.base import Features
from mdistiller.models.decoding import Decoding, generate
from mdistiller.models.language import LanguageModel, Tokens, build_language_model
from mdistiller.tasks.base import TASKS, Head, Task, TaskOutput
from mdistiller.tasks.rouge import exact, rouge_l, scorer

log = logging.getLogger("mdistiller")
SEED_STEP = 10  # difference between the seeds of answers to the same example
END_OF_TEXT = "<|endoftext|>"  # an answer ends here if the model writes this text
NEAR_CHANCE = 2.0  # factor of the accuracy of random guessing


@TASKS.register("language")
class Language(Task):
    """Causal language models on prompts and answers. A batch is one of `mdistiller.data.instructions.TextData`.

    The head is applied only to hidden states at supervised positions, so logits are (n, V) with n supervised tokens, in
    the order of the sequences. `group` is the sequence of a token.
    """

    offers = ("pooled_feat", "classifier")
    unit = "tokens"
    teacher_waits = False
    export_formats = ("safetensors",)  # see `publish`

    def __init__(self, cfg, info):
        super().__init__(cfg, info)
        answers = bool(cfg.GENERATION.EXAMPLES)
        self.headline = "rouge_l" if answers else "accuracy"
        self.compares = cfg.LM.TEACHER_KL
        if self.compares and not cfg.DISTILLER.TEACHER:
            raise UserError("LM.TEACHER_KL: there is no teacher to compare with; name one in DISTILLER.TEACHER")
        self.metrics = (("rouge_l", "exact") if answers else ()) + ("accuracy", "loss")
        self.metrics += ("teacher_kl",) if self.compares else ()
        self.vocabulary: dict[str, int] = {}
        self.weighs_all_tokens = cfg.EA.LEVEL == "prompt_and_response"

    def network(self, role, pretrained=False):
        cfg, settings, teacher = self.cfg, self.cfg.LM, role == "TEACHER"
        name = cfg.DISTILLER[role]
        every = 1 if teacher else settings.EVERY_LAYER
        dtype = settings.TEACHER_DTYPE if teacher else "float32"
        try:
            network = build_language_model(name, self.info.num_classes, pretrained, every, dtype)
        except UserError as error:
            raise UserError(f"DISTILLER.{role}: {error}") from None
        longest, most = self.info.longest, network.positions
        if most is not None and longest > most:
            raise UserError(f"LM.MAX_LENGTH: a text of {longest} tokens is longer than the {most} positions of "
                            f"DISTILLER.{role} {name}; expected at most {most}")
        self.vocabulary[role] = network.vocabulary
        if network.vocabulary < self.info.num_classes:
            raise UserError(f"DISTILLER.{role}: {name} has a vocabulary of {network.vocabulary}; expected that of the "
                            f"tokenizer, {self.info.num_classes} (LM.TOKENIZER)")
        if len(set(self.vocabulary.values())) > 1:
            sizes = ", ".join(f"{key.lower()} {size}" for key, size in self.vocabulary.items())
            raise UserError(f"DISTILLER.{role}: teacher and student must have the same vocabulary; found {sizes}")
        if pretrained:
            self._check_tokens(role, name)
        if settings.CHECKPOINTING and not teacher:
            old = network.inner.gradient_checkpointing_enable  # transformers 5 warns that it has another name there
            getattr(network.inner, "activation_checkpointing_enable", old)()
        return network

    def _check_tokens(self, role, name):
        """Raise UserError if the tokenizer that a pretrained network comes with gives the numbers to other tokens."""
        used = self.cfg.LM.TOKENIZER or self.cfg.DISTILLER.STUDENT
        if name == used:
            return
        try:
            theirs = find_tokenizer(name)
        except UserError:
            log.info("DISTILLER.%s: %s has no tokenizer that could be compared with %s", role, name, used)
            return
        if found := first_difference(self.info.tokenizer, theirs):
            number, ours, other = found
            raise UserError(f"DISTILLER.{role}: {name} has another tokenizer than {used} (LM.TOKENIZER): token "
                            f"{number} is {shown(other)} there and {shown(ours)} here; expected the same vocabulary")

    def inputs(self, batch, view):
        return batch

    def run_student(self, network, inputs):
        return self._run(network, inputs)

    def run_teacher(self, network, inputs, student=None):
        if "hidden_teacher" in inputs:  # from a cache
            rows = inputs["hidden_teacher"]
            return self._output(network, rows, inputs)
        return self._run(network, inputs)

    def _run(self, network, inputs):
        positions = inputs["positions"]
        if self.weighs_all_tokens:
            around = inputs["around"]
            rows, others = self._hidden(network, inputs, torch.cat([positions, around])).split(
                [len(positions), len(around)]
            )
            output = self._output(network, rows, inputs)
            return output._replace(surroundings=(others.detach(), around // inputs["ids"].shape[1], output.head))
        return self._output(network, self._hidden(network, inputs, positions), inputs)

    def _hidden(self, network, inputs, positions):
        return network(Tokens(inputs["ids"], inputs["mask"], inputs["places"], positions))

    def _output(self, network, rows, inputs):
        device = rows.device.type
        amp = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        head = Head(network.head, network.vocabulary, self.cfg.LM.LOSS_CHUNK, amp)
        importance, group = None, inputs["group"]
        if self.cfg.LM.REDUCTION == "sequence":
            importance = sequence_means(group, len(inputs["ids"]), torch.promote_types(rows.dtype, torch.float32))
        return TaskOutput(rows, Features(pooled_feat=rows), group, importance=importance, head=head)

    def target(self, batch, student):
        return batch["target"]

    def supervised(self, outputs, target, label_smoothing):
        losses = [F.cross_entropy(output.logits, target, label_smoothing=label_smoothing, reduction="none")
                  for output in outputs]
        if outputs[0].importance is not None:
            losses = [loss * outputs[0].importance for loss in losses]
        return {"ce": sum(loss.sum() / max(len(target), 1) for loss in losses)}

    def progress(self, logits, target):
        return {"accuracy": logits.argmax(dim=1) == target}

    @torch.inference_mode()
    def evaluate(self, network, batches, device="cpu"):
        """{"rouge_l", "exact", "accuracy", "loss", "teacher_kl", "count"} of a split.

        "rouge_l" and "exact" are in percent, means over examples and, for the split "val", over GENERATION.REPEATS
        answers to each; they are absent if GENERATION.EXAMPLES is 0. "accuracy" is the percentage of answer tokens that
        are the most probable ones after the correct tokens before them. "loss" is in nats per token, and "count" is the
        number of tokens. "teacher_kl" is KL(teacher || network) in nats per token, only with LM.TEACHER_KL.
        Raises ValueError if there are no answers.
        """
        dtype = torch.float32 if torch.device(device).type == "mps" else torch.float64
        sums = torch.zeros(7, dtype=dtype, device=device)
        for batch in batches:
            sums[:3] += self._score_tokens(network, batch, dtype)
            sums[3:] += sums.new_tensor([len(batch["target"]), *self._score_answers(network, batch, device)])
        loss, hits, divergence, tokens, rouge, matches, answers = sum_over_ranks(sums).tolist()
        if not tokens:
            raise ValueError("no answers to evaluate on")
        result = {"accuracy": 100 * hits / tokens, "loss": loss / tokens, "count": int(tokens)}
        if self.compares:
            result["teacher_kl"] = divergence / tokens
        if self.cfg.GENERATION.EXAMPLES:
            result |= {"rouge_l": rouge / max(answers, 1), "exact": matches / max(answers, 1)}
        return result

    def logits(self, network: LanguageModel, batch: dict) -> torch.Tensor:
        """Logits (n, V) of a network at the n supervised positions of a batch."""
        return network.head(self._hidden(network, batch, batch["positions"]))

    def _score_tokens(self, network, batch, dtype):
        """Sums (3,) over the supervised tokens of a batch: loss, hits and KL(teacher || network), or 0 if not compared.

        Logits of a large vocabulary take more memory than all else, so that as few are made at once as in training.
        """
        compared, target = [network, *([self.reference] if self.compares else [])], batch["target"]
        rows = [self._hidden(one, batch, batch["positions"]) for one in compared]
        size, sums = self.cfg.LM.LOSS_CHUNK or max(len(target), 1), torch.zeros(3, dtype=dtype, device=target.device)
        for right, *pieces in zip(target.split(size), *(each.split(size) for each in rows), strict=True):
            logits, *taught = (wide(one.head(piece)) for one, piece in zip(compared, pieces, strict=True))
            loss = F.cross_entropy(logits, right, reduction="sum")
            kl = [kl_by_class(*(F.log_softmax(each, dim=1) for each in (logits, other))).sum() for other in taught]
            row = [loss, (logits.argmax(dim=1) == right).sum(), *(kl or [torch.zeros_like(loss)])]
            sums += torch.stack([value.to(dtype) for value in row])
        return sums

    def _score_answers(self, network, batch, device):
        """[sum of Rouge-L, sum of exact matches, number of answers] for a batch."""
        settings, chosen = self.cfg.GENERATION, []
        for sample, index in zip(batch["samples"], batch["index"].tolist(), strict=True):
            if settings.EXAMPLES < 0 or index < settings.EXAMPLES:
                chosen.append((sample, index))
        sums = [0.0, 0.0, 0]
        repeats = settings.REPEATS if batch["split"] == "val" else 1
        for low in range(0, len(chosen), settings.BATCH_SIZE):
            samples, keys = zip(*chosen[low : low + settings.BATCH_SIZE], strict=True)
            for repeat in range(repeats):
                seed = settings.SEED + SEED_STEP * repeat
                texts = self.answer(network, [sample.prompt for sample in samples], keys, seed, device)
                for sample, text in zip(samples, texts, strict=True):
                    sums[0] += rouge_l(text, sample.references)
                    sums[1] += exact(text, sample.references)
                    sums[2] += 1
        return sums

    def answer(self, network, prompts, keys, seed, device="cpu", decoding: Decoding | None = None) -> list[str]:
        """Answers to tokenized prompts, as texts; `keys` are the numbers of the examples, see `generate`."""
        decoding = decoding or decoding_of(self.cfg)
        tokenizer = self.info.tokenizer
        new = generate(network, prompts, keys, tokenizer.eos_token_id, decoding, seed, device)
        texts = tokenizer.batch_decode(new, skip_special_tokens=True)
        return [text.split(END_OF_TEXT)[0].strip() for text in texts]

    def check_evaluation(self):
        if "rouge_l" in self.metrics:
            scorer()

    def doubt(self, result):
        chance = 100 / self.info.num_classes
        if result["accuracy"] >= NEAR_CHANCE * chance:
            return None
        return (f"token accuracy of {result['accuracy']:.2f} is near chance: was the teacher trained with this "
                "tokenizer (LM.TOKENIZER)?")

    def publish(self, network, folder):
        """Write `folder`/pretrained with `save_pretrained` of transformers, including the tokenizer."""
        place = folder / "pretrained"
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".pretrained.*"):  # of a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        with writing(place), tempfile.TemporaryDirectory(dir=folder, prefix=".pretrained.") as draft:
            network.inner.config.use_cache = True
            network.inner.save_pretrained(draft)
            network.inner.config.use_cache = False
            self.info.tokenizer.save_pretrained(draft)
            place.mkdir(exist_ok=True)
            for path in Path(draft).iterdir():
                os.replace(path, place / path.name)
        return place

    def blank_inputs(self, size, like):
        zero = torch.zeros(1, 1, dtype=torch.int64, device=like.device)
        flat = zero.flatten()
        return {"ids": zero, "mask": zero + 1, "places": zero, "positions": flat, "group": flat, "target": flat,
                "around": flat[:0]}


def decoding_of(cfg) -> Decoding:
    """The settings of the node GENERATION."""
    node = cfg.GENERATION
    return Decoding(node.SAMPLING, node.TEMPERATURE, node.TOP_P, node.TOP_K, node.MAX_NEW_TOKENS, node.NO_REPEAT_NGRAM)
