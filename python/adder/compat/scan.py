"""mamba_ssm's scan functions on Adder's operators; parameter names and order are theirs."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional

from .. import ops
from ._layout import Slots, by_step, channel_last, common_type, dense, expect_shape, real_type


def _parameter(op: str, name: str, tensor: Tensor, A: Tensor, letters: str, shape: tuple[int, ...]) -> Tensor:
    """A constant (D, N) in A's type."""
    expect_shape(op, name, tensor, letters, shape)
    return tensor.to(A.dtype)


def _per_step(op: str, name: str, tensor: Tensor, u: Tensor, A: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, N, L) or (B, G, N, L) to (B, L, G, N); complex (..., N, 2 L), real and imaginary part of each step side by
    side, to (B, L, G, 2 N), those of each state side by side. Constant (D, N) as it is."""
    if tensor.dim() == 2:
        return _parameter(op, name, tensor, A, "(dim, dstate)", tuple(A.shape))
    batch, length, state = u.shape[0], u.shape[2], A.shape[1]
    if tensor.dim() not in (3, 4):
        raise ValueError(
            f"{op}: {name} must have shape (dim, dstate), (batch, dstate, seqlen) or (batch, groups, dstate, "
            f"seqlen), got {tuple(tensor.shape)}")
    grouped = tensor.unsqueeze(1) if tensor.dim() == 3 else tensor
    values = 2 if A.is_complex() else 1
    letters = f"(batch, groups, dstate, {'2 ' if values == 2 else ''}seqlen)"
    expect_shape(op, name, grouped, letters, (batch, grouped.shape[1], state, values * length))
    if values == 1:
        return dense(grouped.to(dtype)).permute(0, 3, 1, 2)
    steps = grouped.unflatten(-1, (length, values)) if length else grouped.unsqueeze(-1).expand(-1, -1, -1, -1, values)
    return steps.permute(0, 3, 1, 2, 4).flatten(3).to(dtype)


def _state_matrix(op: str, A: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    """A (D, N) in the type of the state."""
    if A.dim() != 2 or A.shape[0] != channels:
        raise ValueError(f"{op}: A must have shape (dim, dstate) with dim = {channels}, got {tuple(A.shape)}")
    real = real_type(dtype)
    return A.to(torch.complex128 if real == torch.float64 else torch.complex64) if A.is_complex() else A.to(real)


def _scan_layout(op: str, u: Tensor, delta: Tensor, z: Tensor | None) -> None:
    if u.dim() != 3:
        raise ValueError(f"{op}: u must have shape (batch, dim, seqlen), got {tuple(u.shape)}")
    for name, tensor in (("delta", delta), ("z", z)):
        if tensor is not None:
            expect_shape(op, name, tensor, "(batch, dim, seqlen)", tuple(u.shape))


def selective_scan_fn(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None,
                      z: Tensor | None = None, delta_bias: Tensor | None = None, delta_softplus: bool = False,
                      return_last_state: bool = False) -> Tensor | tuple[Tensor, Tensor]:
    """mamba_ssm.ops.selective_scan_interface.selective_scan_fn, on the CPU too.

    Args:
        u, delta, z: (batch, dim, seqlen), float32, float64, bfloat16 or float16; where types differ the widest is
            computed in.
        A: (dim, dstate), real or complex.
        B, C: (dim, dstate), (batch, dstate, seqlen) or (batch, groups, dstate, seqlen); A complex: a last dimension of
            2 seqlen, real and imaginary part of each step side by side.
        D, delta_bias: (dim).
        return_last_state: also the state after the last step, (batch, dim, dstate) in float32 (float64, or complex).

    Returns:
        (batch, dim, seqlen) in u's type, in memory as u. Unlike there, the gradient goes through the last state too.

    Tensors go in as they lie in memory. Where seqlen lies side by side in all of u, delta, z, B and C, a GPU's forward
    pass is as fast as with channels side by side (dstate 8 or 16, real, no float64, seqlen from 16 on, rows at multiples
    of 16 bytes; otherwise they are copied first); its backward pass copies them, one read and one write each, and the
    CPU reads them with strides, about twice the time.
    """
    op = "selective_scan_fn"
    _scan_layout(op, u, delta, z)
    steps = {name: tensor for name, tensor in (("B", B), ("C", C)) if tensor.dim() > 2}
    dtype = common_type(op, u=u, delta=delta, z=z, **steps)
    A, real = _state_matrix(op, A, u.shape[1], dtype), real_type(dtype)
    y, last = ops.selective_scan(
        by_step(u, dtype), by_step(delta, dtype), A, _per_step(op, "B", B, u, A, dtype),
        _per_step(op, "C", C, u, A, dtype), D=None if D is None else D.to(real),
        z=None if z is None else by_step(z, dtype), delta_bias=None if delta_bias is None else delta_bias.to(real),
        delta_softplus=delta_softplus)
    y = y.transpose(1, 2).to(u.dtype)
    return (y, last) if return_last_state else y


def _rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    return x if weight is None else ops.add_norm(x, None, weight, eps=eps)[0]


def mamba_inner_fn(xz: Tensor, conv1d_weight: Tensor, conv1d_bias: Tensor | None, x_proj_weight: Tensor,
                   delta_proj_weight: Tensor, out_proj_weight: Tensor, out_proj_bias: Tensor | None, A: Tensor,
                   B: Tensor | None = None, C: Tensor | None = None, D: Tensor | None = None,
                   delta_bias: Tensor | None = None, B_proj_bias: Tensor | None = None,
                   C_proj_bias: Tensor | None = None, delta_softplus: bool = True, checkpoint_lvl: int = 1,
                   b_rms_weight: Tensor | None = None, c_rms_weight: Tensor | None = None,
                   dt_rms_weight: Tensor | None = None, b_c_dt_rms_eps: float = 1e-6) -> Tensor:
    """mamba_ssm.ops.selective_scan_interface.mamba_inner_fn: the block between in_proj and the residual.

    Args:
        xz: (batch, 2 dim, seqlen), in_proj's output.
        conv1d_weight: (dim, 1, width). conv1d_bias, D, delta_bias: (dim).
        x_proj_weight: (rank + 2 dstate, dim), less those of a B or C that is given; 4 dstate where A is complex.
        delta_proj_weight: (dim, rank). out_proj_weight: (d_model, dim). out_proj_bias: (d_model).
        A, B, C: as in selective_scan_fn; B or C None: from the input.
        checkpoint_lvl: accepted and not needed: the operators' own backward passes recompute.
        b_rms_weight, c_rms_weight: (dstate), RMS norms of B and C. dt_rms_weight: (rank) normalises the low-rank delta,
            as Falcon Mamba is defined; (dim) the projected one, as the original function does.

    Returns:
        (batch, seqlen, d_model). Under autocast products are computed in its type.

    The gradient of out_proj_bias and those of the norms are the true ones (the original's are not).
    """
    op = "mamba_inner_fn"
    x, z = xz.chunk(2, dim=1)
    dtype, real = xz.dtype, real_type(xz.dtype)
    u, _ = ops.causal_conv1d(channel_last(x, dtype), conv1d_weight.squeeze(1).to(real),
                             None if conv1d_bias is None else conv1d_bias.to(real), activation="silu")
    A = _state_matrix(op, A, x.shape[1], dtype)
    rank, values = delta_proj_weight.shape[1], A.shape[1] * (2 if A.is_complex() else 1)
    parts = list(functional.linear(u, x_proj_weight).split([rank] + [values] * ((B is None) + (C is None)), dim=-1))
    low = parts.pop(0)
    at_rank = dt_rms_weight is not None and dt_rms_weight.shape[0] == rank != delta_proj_weight.shape[0]
    delta = functional.linear(_rms_norm(low, dt_rms_weight if at_rank else None, b_c_dt_rms_eps), delta_proj_weight)
    delta = _rms_norm(delta, None if at_rank else dt_rms_weight, b_c_dt_rms_eps)

    def selected(name: str, given: Tensor | None, bias: Tensor | None, weight: Tensor | None) -> Tensor:
        if given is not None:
            return _per_step(op, name, given, x, A, dtype)
        part = parts.pop(0)
        part = part if bias is None else part + bias.to(part.dtype)
        return _rms_norm(part, weight, b_c_dt_rms_eps).unsqueeze(2).to(dtype)

    y, _ = ops.selective_scan(u, delta.to(dtype), A, selected("B", B, B_proj_bias, b_rms_weight),
                              selected("C", C, C_proj_bias, c_rms_weight), D=None if D is None else D.to(real),
                              z=channel_last(z, dtype), delta_bias=None if delta_bias is None else delta_bias.to(real),
                              delta_softplus=delta_softplus)
    bias = None if out_proj_bias is None else out_proj_bias.to(out_proj_weight.dtype)
    return functional.linear(y.to(out_proj_weight.dtype) if not torch.is_autocast_enabled(y.device.type) else y,
                             out_proj_weight, bias)


@functools.wraps(mamba_inner_fn)
def falcon_inner_fn(*arguments, dt_rms_weight: Tensor | None = None, **named) -> Tensor:
    # transformers' Falcon Mamba: the weights of its norms are ones of whatever length, and wherever else it computes
    # delta it is the low-rank one that is normalised.
    projection = named["delta_proj_weight"] if "delta_proj_weight" in named else arguments[4]
    if dt_rms_weight is not None:
        dt_rms_weight = dt_rms_weight[:projection.shape[1]]
    return mamba_inner_fn(*arguments, **{**named, "dt_rms_weight": dt_rms_weight})


def selective_state_update(state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor,
                           D: Tensor | None = None, z: Tensor | None = None, dt_bias: Tensor | None = None,
                           dt_softplus: bool = False, state_batch_indices: Tensor | None = None) -> Tensor:
    """mamba_ssm.ops.triton.selective_state_update.selective_state_update: one step of the scan, state changed in place.

    Args:
        state: (batch, dim, dstate) or (batch, heads, dim, dstate), computed in float32 (float64) whatever its type.
        x, dt, z: (batch, dim) or (batch, heads, dim).
        A: (dim, dstate) or (heads, dim, dstate). D, dt_bias: (dim) or (heads, dim).
        B, C: (batch, dstate) or (batch, groups, dstate).
        state_batch_indices: (batch), the rows of state that the batch's rows use; a negative one is padding: its result
            is 0 and no state changes.

    Returns:
        x's shape and type. Where gradients are recorded they go through the result and the state.
    """
    op = "selective_state_update"
    if x.dim() not in (2, 3):
        raise ValueError(f"{op}: x must have shape (batch, dim) or (batch, heads, dim), got {tuple(x.shape)}")
    letters = "(batch, dim)" if x.dim() == 2 else "(batch, heads, dim)"
    for name, tensor in (("dt", dt), ("z", z)):
        if tensor is not None:
            expect_shape(op, name, tensor, letters, tuple(x.shape))
    inner = tuple(x.shape[1:])
    expect_shape(op, "A", A, letters.replace("batch, ", "")[:-1] + ", dstate)", (*inner, A.shape[-1]))
    expect_shape(op, "state", state, letters[:-1] + ", dstate)", (state.shape[0], *inner, A.shape[-1]))
    for name, tensor in (("D", D), ("dt_bias", dt_bias)):
        if tensor is not None:
            expect_shape(op, name, tensor, letters.replace("batch, ", ""), inner)
    dtype = common_type(op, x=x, dt=dt, z=z, B=B, C=C)
    real, channels = real_type(dtype), x[0].numel() if x.shape[0] else A[..., 0].numel()
    slots = Slots(op, state, state_batch_indices, x.shape[0])

    def step(tensor: Tensor) -> Tensor:
        return tensor.reshape(x.shape[0], 1, channels).to(dtype)

    def group(tensor: Tensor) -> Tensor:
        return (tensor.unsqueeze(1) if tensor.dim() == 2 else tensor).unsqueeze(1).to(dtype)

    def each(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.reshape(channels).to(real)

    A = _state_matrix(op, A.reshape(channels, A.shape[-1]), channels, dtype)
    y, after = ops.selective_scan(step(x), step(dt), A, group(B), group(C), D=each(D), z=None if z is None else step(z),
                                  delta_bias=each(dt_bias), delta_softplus=dt_softplus,
                                  initial_state=slots.read().flatten(1, -2).to(A.dtype))
    slots.write(after.view(x.shape[0], *state.shape[1:]))
    return slots.without_padding(y.view(x.shape).to(x.dtype))
