"""Tasks of a user's training loop: a batch contains the inputs of the user's networks, with or without labels."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from mdistiller.errors import UserError
from mdistiller.library.networks import call, split_again
from mdistiller.models.base import Output
from mdistiller.models.language import LanguageModel, check_head
from mdistiller.tasks import TaskOutput
from mdistiller.tasks.classification import Classification
from mdistiller.tasks.language import Language

IGNORED = -100  # label of tokens without a loss, as in transformers
TYPES = "token_type_ids"  # some tokenizers always give them, though few causal models read them
OF_MASKED_TOKENS = ("ForMaskedLM", "ForPreTraining")  # what transformers ends the names of such models with


class Samples(Classification):
    """One label a sample, or none; the inputs are a tensor, or a mapping of the networks' keywords."""

    def __init__(self, cfg, info, example: Callable[[Tensor], Any]):
        super().__init__(cfg, info)
        self.example = example
        self.kept: dict[str, Tensor] | None = None  # the networks' outputs, if a check needs them

    def prepare(self, inputs: Any, target: Tensor | None) -> dict[str, Any]:
        """A batch of the distiller."""
        return {"image": inputs, "target": target}

    def run_student(self, network, inputs) -> Output:
        return self._note("student", call(network, inputs))

    def run_teacher(self, network, inputs, student=None) -> Output:
        return self._note("teacher", call(network, inputs))

    def _note(self, role, output):
        if self.kept is not None:
            self.kept[role] = output.logits.detach()
        return output

    def supervised(self, outputs, target, label_smoothing):
        if target is None:
            return {}
        target = target.to(outputs[0].logits.dtype) if target.is_floating_point() else target
        return super().supervised(outputs, target, label_smoothing)

    def progress(self, logits, target):
        if target is None:
            return {}
        return super().progress(logits, target.argmax(dim=1) if target.is_floating_point() else target)

    def blank_inputs(self, size, like):
        return self.example(like)


class Texts(Language):
    """Causal language models of transformers: a sample is a token that has a label, and its logits come before it.

    Without labels all tokens but the first of each row are samples. The first token of a row never is one.
    """

    def __init__(self, cfg, info, networks: Iterable[LanguageModel] = ()):
        super().__init__(cfg, info)
        self.reads_types = any(TYPES in inspect.signature(network.body.forward).parameters for network in networks)

    def prepare(self, inputs: Any, target: Tensor | None) -> dict[str, Any]:
        """A batch of the distiller from input_ids, attention_mask and labels (B, L each), -100 for no label."""
        inputs = {"input_ids": inputs} if isinstance(inputs, Tensor) else dict(inputs)
        ids = inputs.pop("input_ids", None)
        mask = inputs.pop("attention_mask", None)
        if TYPES in inputs and not self.reads_types:
            del inputs[TYPES]
        if "position_ids" in inputs:
            raise UserError("a language model is given one text a row, with padding and attention_mask; found "
                            "position_ids, as of packed texts, which some models do not keep apart")
        if ids is None or inputs:
            found = ", ".join(inputs) or "no input_ids"
            raise UserError(f"a language model is given input_ids, attention_mask and labels; found {found}")
        if target is not None and not (isinstance(target, Tensor) and target.shape == ids.shape):
            found = tuple(target.shape) if isinstance(target, Tensor) else type(target).__name__
            raise UserError(f"labels: expected one for each token, {tuple(ids.shape)}, or {IGNORED}; found {found}")
        mask = torch.ones_like(ids) if mask is None else mask.to(ids.dtype)
        known = mask.bool() if target is None else target != IGNORED
        wanted = torch.zeros_like(known)
        wanted[:, :-1] = known[:, 1:] & mask[:, :-1].bool()  # with padding on the left, nothing precedes a first token
        (positions,) = wanted.flatten().nonzero(as_tuple=True)  # waits for the device, whose labels give the number
        following = positions + 1
        batch = {
            "ids": ids,
            "mask": mask,
            "places": (mask.cumsum(1) - 1).clamp_min(0),
            "positions": positions,
            "group": positions // ids.shape[1],
            "target": (ids if target is None else target).flatten()[following],
            "labelled": target is not None,
        }
        if self.weighs_all_tokens:  # with those that have no label, but not with the last one of a row
            others = torch.zeros_like(wanted)
            others[:, :-1] = (mask[:, :-1] * mask[:, 1:]).bool() & ~wanted[:, :-1]
            (batch["around"],) = others.flatten().nonzero(as_tuple=True)
        return batch

    def all_logits(self, network: LanguageModel, batch: dict) -> Tensor:
        """Logits (B, L, V) of all tokens, as models of transformers return them."""
        ids = batch["ids"]
        rows = self._hidden(network, batch, torch.arange(ids.numel(), device=ids.device))
        return self._output(network, rows, batch).in_full().logits.unflatten(0, ids.shape)

    def _run(self, network, inputs):
        output = super()._run(network, inputs)
        return output if self.cfg.LM.LOSS_CHUNK else output.in_full()

    def run_teacher(self, network, inputs, student=None) -> TaskOutput:
        return self._run(network, inputs)

    def inputs(self, batch, view):
        self.labelled = batch["labelled"]
        return super().inputs(batch, view)

    def supervised(self, outputs, target, label_smoothing):
        return super().supervised(outputs, target, label_smoothing) if self.labelled else {}


def causal(network: nn.Module) -> bool:
    """Whether the network is a causal language model of transformers, bare or behind our interface."""
    if isinstance(network, LanguageModel):
        return True
    config = getattr(network, "config", None)
    head = getattr(network, "get_output_embeddings", lambda: None)() if hasattr(config, "vocab_size") else None
    return isinstance(head, nn.Module) and not getattr(config, "is_encoder_decoder", False)


def as_language_model(network: nn.Module) -> LanguageModel:
    """A causal model of transformers behind our interface; its own setting for generation stays.

    Raises UserError for any other network, for a model of masked tokens, for one that is split by fully_shard, and for
    one that `check_head` refuses.
    """
    if isinstance(network, LanguageModel):
        return network
    if not causal(network):
        raise UserError(
            f"{type(network).__name__} is no causal language model of transformers, as the other network is"
        )
    if any(kind.__name__.endswith(OF_MASKED_TOKENS) for kind in type(network).__mro__):
        raise UserError(
            f"{type(network).__name__} predicts masked tokens, not the next one, which distill does not support: apply "
            "ea_weight and kd_loss to its logits at the masked places"
        )
    if hasattr(network, "unshard"):  # of fully_shard, whose hooks are those of the whole model
        raise UserError(
            f"{type(network).__name__} is split by fully_shard, and its parts are called one by one: split its layers "
            "alone, or the module that distill returns"
        )
    keeps_cache = getattr(network.config, "use_cache", None)
    wrapped = LanguageModel(network)
    if wrapped.without_cache:
        network.config.use_cache = keeps_cache
    check_head(wrapped, type(network).__name__)
    split_again(network)
    return wrapped
