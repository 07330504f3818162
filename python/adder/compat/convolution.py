"""causal_conv1d's functions on Adder's operators; parameter names and order are theirs."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import ops
from ._layout import Slots, by_step, channel_last, common_type, expect_shape, like_layout, real_type


def _activation(op: str, activation: str | bool | None) -> str:
    if activation in (None, False):
        return "none"
    if activation in ("silu", "swish", True):
        return "silu"
    raise NotImplementedError(f'{op}: activation must be None, "silu" or "swish", got {activation!r}')


def _weights(op: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """In the type that the operator adds in."""
    if weight.dim() != 2 or weight.shape[0] != x.shape[1]:
        raise ValueError(
            f"{op}: weight must have shape (dim, width) with dim = {x.shape[1]}, got {tuple(weight.shape)}")
    real = real_type(x.dtype)
    return weight.to(real), None if bias is None else bias.to(real)


def causal_conv1d_fn(x: Tensor, weight: Tensor, bias: Tensor | None = None, seq_idx: Tensor | None = None,
                     initial_states: Tensor | None = None, return_final_states: bool = False,
                     final_states_out: Tensor | None = None,
                     activation: str | None = None) -> Tensor | tuple[Tensor, Tensor]:
    """causal_conv1d.causal_conv1d_fn, on the CPU too and for any width from 1.

    Args:
        x: (batch, dim, seqlen), float32, float64, bfloat16 or float16. weight: (dim, width). bias: (dim).
        seq_idx: (batch, seqlen) integers: where the number changes a new sequence begins, which sees nothing of the one
            before; where it is negative the result is 0 and the step is left out. Its values are read on the host.
        initial_states: (batch, dim, width - 1), what came before each row.
        return_final_states: also the last width - 1 inputs of each row (with seq_idx: of its last sequence), (batch,
            dim, width - 1) in x's type; written to final_states_out where that is given.
        activation: None, "silu" or "swish".

    Returns:
        (batch, dim, seqlen) in x's type, in memory as x. Gradients go through the states too.

    x goes in as it lies in memory. Where seqlen lies side by side a GPU is as fast as with channels side by side (width
    2 to 4, no seq_idx, no float64, rows at multiples of 16 bytes; others are copied first, and the result back); the CPU
    reads it with strides.
    """
    op = "causal_conv1d_fn"
    if x.dim() != 3:
        raise ValueError(f"{op}: x must have shape (batch, dim, seqlen), got {tuple(x.shape)}")
    act, dtype = _activation(op, activation), common_type(op, x=x)
    batch, channels, length = x.shape
    kernel, bias = _weights(op, x, weight, bias)
    before = None
    if initial_states is not None:
        expect_shape(op, "initial_states", initial_states, "(batch, dim, width - 1)",
                     (batch, channels, weight.shape[1] - 1))
        before = initial_states.transpose(1, 2).to(kernel.dtype)
    if seq_idx is None:
        y, window = ops.causal_conv1d(by_step(x, dtype), kernel, bias, activation=act, initial_window=before)
        y = y.transpose(1, 2)
    else:
        expect_shape(op, "seq_idx", seq_idx, "(batch, seqlen)", (batch, length))
        y, window = _packed(channel_last(x, dtype), kernel, bias, act, before, seq_idx)
        y = like_layout(y, x, dtype)
    if not return_final_states:
        return y
    final = window.transpose(1, 2).to(dtype)
    if final_states_out is None:
        return y, final
    return y, final_states_out.copy_(final)


def _packed(rows: Tensor, weight: Tensor, bias: Tensor | None, act: str, before: Tensor | None,
            seq_idx: Tensor) -> tuple[Tensor, Tensor]:
    """All rows behind each other as one packed row, a sequence for each run of equal numbers."""
    batch, length, channels = rows.shape
    if length == 0:
        return ops.causal_conv1d(rows, weight, bias, activation=act, initial_window=before)
    numbers = seq_idx.detach().cpu()
    begins = torch.ones(batch, length, dtype=torch.bool)
    begins[:, 1:] = numbers[:, 1:] != numbers[:, :-1]
    starts = begins.flatten().nonzero().squeeze(1)
    counts = begins.sum(1).cumsum(0)  # the sequences up to each row's end
    offsets = torch.cat([starts, torch.tensor([batch * length])])
    windows = None
    if before is not None:
        first = torch.cat([torch.zeros(1, dtype=torch.int64), counts[:-1]]).to(rows.device)
        windows = before.new_zeros(len(starts), *before.shape[1:]).index_copy(0, first, before)
    mask = (seq_idx >= 0).reshape(1, -1) if bool((numbers < 0).any()) else None
    y, final = ops.causal_conv1d(rows.reshape(1, batch * length, channels), weight, bias, activation=act,
                                 initial_window=windows, mask=mask, cu_seqlens=offsets)
    return y.view(batch, length, channels), final.index_select(0, (counts - 1).to(rows.device))


def causal_conv1d_update(x: Tensor, conv_state: Tensor, weight: Tensor, bias: Tensor | None = None,
                         activation: str | bool | None = None, cache_seqlens: Tensor | None = None,
                         conv_state_indices: Tensor | None = None) -> Tensor:
    """causal_conv1d.causal_conv1d_update: the convolution of new steps, the state of earlier ones changed in place.

    Args:
        x: (batch, dim) or (batch, dim, seqlen). weight: (dim, width). bias: (dim).
        conv_state: (batch, dim, state_len) with state_len >= width - 1, the last inputs, newest last.
        cache_seqlens: (batch), the steps that went before; conv_state is then a ring, step t at t % state_len.
        conv_state_indices: (batch), the rows of conv_state that the batch's rows use; a negative one is padding: its
            result is 0 and no state changes.
        activation: None, "silu" or "swish".

    Returns:
        x's shape and type. Where gradients are recorded they go through the result and the state.
    """
    op = "causal_conv1d_update"
    if x.dim() not in (2, 3):
        raise ValueError(f"{op}: x must have shape (batch, dim) or (batch, dim, seqlen), got {tuple(x.shape)}")
    act, dtype = _activation(op, activation), common_type(op, x=x)
    steps = x.unsqueeze(2) if x.dim() == 2 else x
    batch, channels, length = steps.shape
    kernel, bias = _weights(op, steps, weight, bias)
    needed, size = weight.shape[1] - 1, conv_state.shape[-1]
    expect_shape(op, "conv_state", conv_state, "(batch, dim, state_len)", (conv_state.shape[0], channels, size))
    if size < needed:
        raise ValueError(f"{op}: conv_state must have state_len >= width - 1 = {needed}, got {size}")
    slots = Slots(op, conv_state, conv_state_indices, batch)
    old = slots.read()
    new = steps.to(old.dtype)
    if cache_seqlens is None:
        before = old[..., size - needed:]
        after = torch.cat([old[..., min(length, size):], new[..., max(length - size, 0):]], dim=-1)
    else:
        expect_shape(op, "cache_seqlens", cache_seqlens, "(batch)", (batch,))
        time = cache_seqlens.to(torch.int64).unsqueeze(1)

        def places(start: int, stop: int) -> Tensor:
            ring = torch.remainder(time + torch.arange(start, stop, device=x.device), max(size, 1))
            return ring.unsqueeze(1).expand(-1, channels, -1)

        before = old.gather(2, places(-needed, 0))
        kept = min(length, size)  # of more steps than the ring holds the last remain
        after = old.scatter(2, places(length - kept, length), new[..., length - kept:])
    y, _ = ops.causal_conv1d(by_step(steps, dtype), kernel, bias, activation=act,
                             initial_window=before.transpose(1, 2).to(kernel.dtype))
    slots.write(after)
    y = slots.without_padding(y.transpose(1, 2))
    return y.squeeze(2) if x.dim() == 2 else y


def causal_conv1d_varlen_states(x: Tensor, cu_seqlens: Tensor, state_len: int) -> Tensor:
    """causal_conv1d.causal_conv1d_varlen.causal_conv1d_varlen_states: the last inputs of each packed sequence.

    Args:
        x: (total, dim). cu_seqlens: (batch + 1), where each sequence begins, and total. state_len: the inputs to keep.

    Returns:
        (batch, dim, state_len) in x's type, zeros before the begin of a shorter sequence. Without gradient there, with
        one here.
    """
    op = "causal_conv1d_varlen_states"
    if x.dim() != 2 or cu_seqlens.dim() != 1 or len(cu_seqlens) < 1:
        raise ValueError(f"{op}: x must have shape (total, dim) and cu_seqlens (batch + 1), got {tuple(x.shape)} and "
                         f"{tuple(cu_seqlens.shape)}")
    offsets = cu_seqlens.to(torch.int64).to(x.device)
    place = offsets[1:, None] + torch.arange(-state_len, 0, device=x.device)
    inside = place >= offsets[:-1, None]
    padded = torch.cat([x.new_zeros(1, x.shape[1]), x])  # so that an empty x has a row to point at
    return padded[torch.where(inside, place + 1, 0)].transpose(1, 2)
