"""Generates answers of a causal language model token by token, with random numbers for each example."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mdistiller.errors import UserError

MULTIPLIER = 1_000_003  # of seeds, so that different (seed, example) pairs give different numbers
SMALLEST = torch.finfo(torch.float32).tiny


class Decoding(NamedTuple):
    """Settings of the generation of answers; see the node GENERATION of the configuration."""

    sampling: str = "per_example"
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 256
    no_repeat_ngram: int = 0


@torch.no_grad()
def generate(network, prompts: Sequence[Sequence[int]], keys: Sequence[int], end: int, decoding: Decoding,
             seed: int = 0, device: torch.device | str = "cpu") -> list[list[int]]:
    """The new tokens for each prompt, up to the end-of-text token `end`, which is left out.

    `network` is a `LanguageModel` in eval mode. Prompts are padded on the left, and positions count from the first
    token of each prompt. With sampling "per_example", Gumbel noise from a generator with the seed (seed, key of the
    example) is added to the logits, and the token with the largest sum is taken. This samples from the softmax of the
    logits and does not depend on the batch. With "global", one generator makes the noise of all rows; with "greedy"
    there is no noise. An answer also ends when prompt and answer fill the positions of the network. Raises UserError
    for a prompt that leaves none.
    """
    most, last = _most_new(prompts, network.positions, decoding.max_new_tokens)
    ids, mask = _left_padded(prompts, end, device)
    noise = _noise(decoding.sampling, keys, seed, network.vocabulary, device)
    repeated = [Repeats(prompt, decoding.no_repeat_ngram) for prompt in prompts]
    answers, running = [[] for _ in prompts], [True] * len(prompts)
    places, past = (mask.cumsum(1) - 1).clamp_min(0), None
    for _ in range(max(most)):
        logits, past = network.next_logits(ids, mask, places, past)
        logits = filtered(logits.float(), repeated, decoding)
        chosen = (logits if noise is None else logits + noise()).argmax(dim=1)
        for row, token in enumerate(chosen.tolist()):
            running[row] &= token != end and len(answers[row]) < most[row]
            if running[row]:
                answers[row].append(token)
                repeated[row].add(token)
        if not any(running):
            break
        ids, places = chosen[:, None], (places[:, -1:] + 1).clamp_max(last)  # only rows that are done go beyond it
        mask = F.pad(mask, (0, 1), value=1)
    return answers


def _most_new(prompts, positions, most):
    """(the largest number of new tokens for each prompt, the last place that the network knows)."""
    if positions is None:
        return [most] * len(prompts), max(map(len, prompts)) + most
    longest = max(map(len, prompts))
    if longest >= positions:
        raise UserError(f"LM.MAX_PROMPT: a prompt of {longest} tokens leaves no room for an answer; expected less than "
                        f"the {positions} positions of the network")
    return [min(most, positions - len(prompt)) for prompt in prompts], positions - 1


def _left_padded(prompts, pad, device):
    length = max(len(prompt) for prompt in prompts)
    rows = [[pad] * (length - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(rows, device=device), torch.tensor(mask, device=device)


def _noise(sampling, keys, seed, size, device) -> Callable[[], Tensor] | None:
    """A function that returns the Gumbel noise (B, V) of the next step, or None for greedy decoding."""
    if sampling == "greedy":
        return None
    seeds = [seed * MULTIPLIER + int(key) for key in (keys if sampling == "per_example" else keys[:1])]
    generators = [torch.Generator().manual_seed(value) for value in seeds]
    shape = (size,) if sampling == "per_example" else (len(keys), size)

    def draw():
        uniform = torch.stack([torch.rand(shape, generator=generator) for generator in generators])
        return -(-uniform.view(len(keys), size).clamp_min(SMALLEST).log()).log().to(device)

    return draw


def filtered(logits: Tensor, repeated: Sequence["Repeats"], decoding: Decoding) -> Tensor:
    """Logits (B, V) divided by the temperature; -inf for repeated n-grams and for tokens outside top-k and top-p."""
    logits = logits / decoding.temperature
    for row, history in enumerate(repeated):
        if banned := history.banned():
            logits[row, list(banned)] = -torch.inf
    if 0 < decoding.top_k < logits.shape[1]:
        least = logits.topk(decoding.top_k, dim=1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if decoding.top_p < 1:
        ordered, order = logits.sort(dim=1, descending=True)
        before = ordered.softmax(1).cumsum(1) - ordered.softmax(1)
        outside = torch.zeros_like(logits, dtype=torch.bool).scatter(1, order, before >= decoding.top_p)
        logits = logits.masked_fill(outside, -torch.inf)
    return logits


class Repeats:
    """The tokens of one row with its prompt, and the next tokens that would repeat an n-gram (n 0: none)."""

    def __init__(self, prompt: Sequence[int], n: int):
        self.n, self.tokens, self.followers = n, [], {}
        for token in prompt if n else ():
            self.add(token)

    def add(self, token: int) -> None:
        if not self.n:
            return
        self.tokens.append(token)
        if len(self.tokens) >= self.n:
            self.followers.setdefault(tuple(self.tokens[-self.n : -1]), set()).add(token)

    def banned(self) -> set[int]:
        """The tokens that would repeat an n-gram if they came next."""
        return self.followers.get(tuple(self.tokens[len(self.tokens) - self.n + 1 :]), set())
