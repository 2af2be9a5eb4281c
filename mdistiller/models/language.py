"""Causal language models of transformers, with hidden states and logits at chosen positions of tokens (B, L)."""

import inspect
import logging
import re
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mdistiller.errors import UserError, counted, first_line
from mdistiller.libraries import import_transformers, source_of
from mdistiller.models.base import modes_kept
from mdistiller.models.transparent import Transparent

log = logging.getLogger("mdistiller")
TINY = re.compile(r"tiny_(\d{1,2})x(\d{1,4})")  # layers x width: small models for small vocabularies
TINY_POSITIONS = 64
HEAD_WIDTH = 16  # width of an attention head of a tiny model
CHECK_LENGTH = 4  # number of tokens of a test input
CHECK_TOLERANCE = 1e-3
CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")  # settings of transformers
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


class Tokens(NamedTuple):
    """The input of a language model.

    `ids` (B, L) are tokens, `mask` (B, L) is 1 at tokens and 0 at padding, and `places` (B, L) count the tokens of each
    row from 0. `positions` (n,) are the indices, in the flattened B * L, at which outputs are computed.
    """

    ids: Tensor
    mask: Tensor
    places: Tensor
    positions: Tensor


class LanguageModel(Transparent):
    """A causal model of transformers; the state dict is that of the inner model.

    The head is applied only to the hidden states at the chosen positions, so that no tensor of all tokens times the
    vocabulary is needed.
    """

    def __init__(self, inner: nn.Module):
        super().__init__(inner)
        # GPT-1 has no cache, and before transformers 5 it refuses the keyword.
        self.without_cache = {"use_cache": False} if hasattr(inner.config, "use_cache") else {}
        inner.config.update(self.without_cache)

    @property
    def head(self) -> nn.Module:
        """The module from hidden states (n, D) to logits (n, V)."""
        return self.inner.get_output_embeddings()

    @property
    def vocabulary(self) -> int:
        return self.head.weight.shape[0]

    @property
    def width(self) -> int:
        """The size D of the hidden states that the head reads."""
        return self.head.weight.shape[1]

    @property
    def positions(self) -> int | None:
        """The largest number of tokens of a sequence; None if the model has no limit."""
        return getattr(self.inner.config, "max_position_embeddings", None)

    @property
    def body(self) -> nn.Module:
        """The module from tokens to hidden states; of a model with adapters of peft, the one that contains these."""
        return getattr(self.inner, "get_base_model", lambda: self.inner)().base_model

    def forward(self, tokens: Tokens) -> Tensor:
        """Last hidden states (n, D) at `tokens.positions`."""
        output = self.body(
            input_ids=tokens.ids, attention_mask=tokens.mask, position_ids=tokens.places, **self.without_cache
        )
        return output.last_hidden_state.flatten(0, 1)[tokens.positions]

    def next_logits(self, ids: Tensor, mask: Tensor, places: Tensor, cache=None) -> tuple[Tensor, object]:
        """Logits (B, V) of the token after `ids` (B, L), and the cache for the next call.

        `mask` (B, number of all tokens so far) and `places` (B, L) are those of `Tokens`. With a cache, `ids` are only
        the tokens that it does not contain yet.
        """
        known = inspect.signature(self.inner.forward).parameters
        name = "cache" if "cache" in known else "past_key_values"  # renamed in transformers 5
        output = self.inner(input_ids=ids, attention_mask=mask, position_ids=places, use_cache=True, logits_to_keep=1,
                            **{name: cache})
        return output.logits[:, -1], getattr(output, name, None) or output.past_key_values


def build_language_model(
    name: str, vocabulary: int, pretrained: bool = False, every_layer: int = 1, dtype: str = "float32"
) -> LanguageModel:
    """A causal language model by name, with random weights unless `pretrained`.

    `name` is `tiny_<layers>x<width>` (a small model for a small `vocabulary`), a folder written by `save_pretrained`, a
    GGUF file, or a name of the Hugging Face hub. With `every_layer` k, the layers 0, k, 2k, ... are kept, to make a
    student from its teacher. `dtype` is that of the weights, a name in `DTYPES`. Raises UserError if there is no such
    model, if it cannot be run, or if its logits are not those of its head.
    """
    transformers = import_transformers()
    if found := TINY.fullmatch(name):
        if pretrained:
            raise UserError(f"no pretrained weights for {name!r}; expected a checkpoint file")
        network = _tiny(transformers, vocabulary, *map(int, found.groups()))
    else:
        network = _load(transformers, name, pretrained, DTYPES[dtype])
    if every_layer > 1:
        network = keep_layers(network, every_layer)
    network = LanguageModel(network.to(DTYPES[dtype]))
    check_head(network, name)
    return network


def _tiny(transformers, vocabulary, layers, width):
    config = transformers.GPT2Config(
        vocab_size=vocabulary, n_positions=TINY_POSITIONS, n_embd=width, n_layer=layers,
        n_head=max(width // HEAD_WIDTH, 1), resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )
    return transformers.GPT2LMHeadModel(config)


def _load(transformers, name, pretrained, dtype):
    place, keywords = source_of(name)
    if "gguf_file" in keywords and not Path(name).is_file():
        raise UserError(f"no such GGUF file: {name}")
    try:
        if not pretrained:
            config = transformers.AutoConfig.from_pretrained(place, **keywords)
            return transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        network, loaded = transformers.AutoModelForCausalLM.from_pretrained(
            place, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, **keywords
        )
    except ImportError as error:
        extra = "gguf and accelerate" if "gguf_file" in keywords else "another library"
        raise UserError(f"{name} needs {extra}: pip install 'mdistiller-ea[llm]' ({first_line(error)})") from None
    except Exception as error:  # damaged files raise nearly anything, such as SafetensorError
        raise UserError(
            f"no language model {name!r}: expected a folder with config.json and model.safetensors, a .gguf file, "
            f"tiny_<layers>x<width>, or a name of the Hugging Face hub, which must be reachable ({first_line(error)})"
        ) from None
    _check_loaded(name, loaded)
    return network


def _check_loaded(name, loaded):
    """Raise UserError for weights that a network did not find in its files: transformers leaves them random."""
    for kind, problem in (("missing_keys", "lack"), ("mismatched_keys", "have other shapes for")):
        keys = sorted(key if isinstance(key, str) else key[0] for key in loaded[kind])
        if keys:
            raise UserError(f"{name}: its files {problem} {counted(len(keys), 'weight')} of the network "
                            f"({keys[0]}, ...)")
    if unused := sorted(loaded["unexpected_keys"]):
        log.warning("%s: the network has no place for %s of its files (%s, ...)", name, counted(len(unused), "weight"),
                    unused[0])


def _layers_of(network):
    """(name of the list of layers within the model, that list)."""
    number = network.config.num_hidden_layers
    for name, module in network.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == number:
            return name, module
    raise UserError(f"{type(network).__name__}: its {number} layers were not found; expected LM.EVERY_LAYER 1")


def keep_layers(network: nn.Module, every: int) -> nn.Module:
    """A copy of a causal model of transformers with only the layers 0, every, 2 * every, ....

    The log gives their number. Raises UserError for a model whose layers are not found.
    """
    prefix, layers = _layers_of(network)
    kept = list(range(0, len(layers), every))
    log.info("LM.EVERY_LAYER %d: the student keeps %d of %d layers of its network", every, len(kept), len(layers))
    config = type(network.config).from_dict(network.config.to_dict())
    config.num_hidden_layers = len(kept)
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = [network.config.layer_types[number] for number in kept]
    smaller = type(network)(config)
    state, start = {}, f"{prefix}."
    for key, value in network.state_dict().items():
        if key.startswith(start):
            number, _, rest = key.removeprefix(start).partition(".")
            if int(number) not in kept:
                continue
            key = f"{start}{kept.index(int(number))}.{rest}"
        state[key] = value
    smaller.load_state_dict(state)
    smaller.generation_config = network.generation_config
    return smaller


@torch.no_grad()
def check_head(network: LanguageModel, name: str) -> None:
    """Raise UserError for a model that cannot be run, or whose logits differ from its head applied to hidden states.

    A model on the device "meta", which has no numbers, is not run.
    """
    device = next(network.parameters(), torch.zeros(())).device
    same = not any(getattr(network.inner.config, cap, None) for cap in CAPS)  # too little to see with random weights
    if same and device.type != "meta":
        positions = torch.arange(CHECK_LENGTH, device=device)
        try:
            ids = positions[None] % network.vocabulary
            with modes_kept(network):
                network.eval()
                ours = network.head(network(Tokens(ids, torch.ones_like(ids), positions[None], positions))).float()
                theirs = network.inner(input_ids=ids, **network.without_cache).logits[0].float()
        except Exception as error:  # of any kind, from settings that no network can have
            raise UserError(f"{name}: cannot be run on {CHECK_LENGTH} tokens: {first_line(error)}") from error
        if not theirs.isfinite().all():
            raise UserError(f"{name}: its logits are not finite: its weights are damaged")
        same = ours.shape == theirs.shape and torch.allclose(ours, theirs, CHECK_TOLERANCE, CHECK_TOLERANCE)
    if not same:
        raise UserError(f"{name}: its logits are not those of its head (scaled or capped?), which is not supported")
