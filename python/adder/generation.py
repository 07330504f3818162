"""Generation: prompts of any lengths packed into one pass, then a token a row and step until each row's own end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .language_model import MambaLM


class GeneratedRow(NamedTuple):
    tokens: list[int]
    """without the prompt and without the stop token"""
    finish: str
    """"stop": a stop token; "length": max_tokens; "callback\""""


def _check_number(name: str, value: float, holds: bool, rule: str) -> None:
    if not holds:
        raise ValueError(f"generate: {name} must be {rule}, got {value}")


def allowed(logits: Tensor, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0,
            min_p: float = 0.0) -> Tensor:
    """The distribution that tokens are drawn from: (rows, V) logits to (rows, V) probabilities, float64.

    In this order: logits / temperature; the top_k largest stay; of their softmax the most probable that sum to top_p or
    more stay, the first always; of those, the ones at least min_p times as probable as their row's most probable.
    """
    order = torch.sort(logits.double(), dim=-1, descending=True, stable=True)  # equal ones: the lower id first
    scaled = (order.values - order.values[:, :1]) / temperature
    if top_k > 0:
        scaled[:, top_k:] = -torch.inf
    p = torch.softmax(scaled, dim=-1)
    if top_p < 1:
        before = p.cumsum(-1) - p
        beyond = before >= top_p
        beyond[:, 0] = False
        p = p.masked_fill(beyond, 0)
    p = p.masked_fill(p < min_p * p[:, :1], 0)
    return torch.zeros_like(p).scatter_(-1, order.indices, p / p.sum(-1, keepdim=True))


def penalised(logits: Tensor, histories: Sequence[Sequence[int]], penalty: float) -> Tensor:
    """The logit of each token of a row's history divided by the penalty if positive, multiplied by it if not."""
    seen = torch.zeros(logits.shape, dtype=torch.bool)
    for row, history in enumerate(histories):
        seen[row, torch.as_tensor(history, dtype=torch.int64)] = True
    return torch.where(seen.to(logits.device), torch.where(logits > 0, logits / penalty, logits * penalty), logits)


@torch.no_grad()
def generate(model: MambaLM, prompts: Sequence[Sequence[int] | Tensor] | Tensor, *, max_tokens: int = 256,
             stop_tokens: Sequence[int] = (), temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0,
             min_p: float = 0.0, repetition_penalty: float = 1.0, seed: int = 0, start_token: int | None = None,
             callback: Callable[[int, int], bool | None] | None = None) -> list[GeneratedRow]:
    """Continues each prompt until a stop token, max_tokens or the callback ends its row; rows that are done leave the
    batch.

    Args:
        model: its mode is kept; call eval() first where it has dropout.
        prompts: token ids, a sequence a row, of any lengths; or a tensor (B, L). An empty prompt is start_token.
        max_tokens: tokens for a row at most, from 0.
        stop_tokens: each ends its row and is not part of it.
        temperature: 0 takes the most probable token; logits are divided by it otherwise.
        top_k, top_p, min_p: what draws are limited to, see `allowed`.
        repetition_penalty: for tokens of the prompt and the row so far; 1: off.
        seed: a row's draws are a function of seed, row and step alone, not of the rows beside it.
        callback: called with row and token as it is chosen; True ends the row.

    Raises:
        ValueError: a number outside its range, an id outside [0, vocab_size), an empty prompt without start_token,
            logits that are NaN.
    """
    vocab, device = model.options.vocab_size, model.lm_head.weight.device
    for name, value, holds, rule in (
            ("max_tokens", max_tokens, max_tokens >= 0, "at least 0"),
            ("temperature", temperature, temperature >= 0, "at least 0"), ("top_k", top_k, top_k >= 0, "at least 0"),
            ("top_p", top_p, 0 <= top_p <= 1, "in [0, 1]"), ("min_p", min_p, 0 <= min_p <= 1, "in [0, 1]"),
            ("repetition_penalty", repetition_penalty, repetition_penalty > 0, "above 0")):
        _check_number(name, value, holds, rule)
    histories = [_ids(row, prompt, start_token, vocab) for row, prompt in enumerate(prompts)]
    tokens: list[list[int]] = [[] for _ in histories]
    finish = ["length"] * len(histories)
    if not histories or max_tokens == 0:
        return [GeneratedRow(*row) for row in zip(tokens, finish)]
    generators = [torch.Generator().manual_seed((seed * 0x9E3779B1 + row) % 2**63) for row in range(len(histories))]

    offsets = torch.tensor([0, *map(len, histories)]).cumsum(0)
    packed = torch.tensor([token for history in histories for token in history], device=device).unsqueeze(0)
    hidden, state = model.hidden(packed, cu_seqlens=offsets)
    logits = model.logits(hidden[0, (offsets[1:] - 1).to(device)])
    running = list(range(len(histories)))
    for step in range(max_tokens):
        if torch.isnan(logits).any():
            raise ValueError(f"generate: the logits after {step} tokens are NaN")
        if repetition_penalty != 1:
            logits = penalised(logits, [histories[row] for row in running], repetition_penalty)
        if temperature == 0:
            chosen = logits.argmax(-1)
        else:
            p = allowed(logits, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
            draws = torch.stack([torch.rand((), generator=generators[row], dtype=torch.float64) for row in running])
            chosen = _draw(p, draws.to(device))
        kept = []
        for place, (row, token) in enumerate(zip(running, chosen.tolist())):
            if token in stop_tokens:
                finish[row] = "stop"
                continue
            tokens[row].append(token)
            histories[row].append(token)
            if callback is not None and callback(row, token):
                finish[row] = "callback"
            else:
                kept.append(place)
        if not kept or step + 1 == max_tokens:
            break
        if len(kept) < len(running):
            index = torch.tensor(kept, device=device)
            state, chosen, running = state.select(index), chosen[index], [running[place] for place in kept]
        hidden, state = model.hidden(chosen.unsqueeze(1), state)
        logits = model.logits(hidden[:, 0])
    return [GeneratedRow(*row) for row in zip(tokens, finish)]


def _draw(p: Tensor, draws: Tensor) -> Tensor:
    """The token at which the sum of probabilities, walked by id, passes the draw."""
    sums = p.cumsum(-1)
    place = torch.searchsorted(sums, (draws * sums[:, -1]).unsqueeze(1), right=True).squeeze(1)
    # Rounding may put a draw at the end of the sum: the last token that can be drawn takes it.
    last = p.shape[-1] - 1 - (p.flip(-1) > 0).int().argmax(-1)
    return torch.minimum(place, last)


def _ids(row: int, prompt: Sequence[int] | Tensor, start_token: int | None, vocab: int) -> list[int]:
    ids = [int(token) for token in (prompt.tolist() if isinstance(prompt, Tensor) else prompt)]
    if not ids:
        if start_token is None:
            raise ValueError(f"generate: prompt {row} is empty and there is no start_token")
        ids = [start_token]
    for place, token in enumerate(ids):
        if not 0 <= token < vocab:
            raise ValueError(f"generate: token {token} at position {place} of prompt {row} is outside the vocabulary "
                             f"[0, {vocab})")
    return ids
