"""Between the layouts and types of mamba_ssm and causal_conv1d and those of Adder's operators."""

from __future__ import annotations

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def expect_shape(op: str, name: str, tensor: Tensor, letters: str, expected: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != expected:
        raise ValueError(f"{op}: {name} must have shape {letters} = {expected}, got {tuple(tensor.shape)}")


def real_type(dtype: torch.dtype) -> torch.dtype:
    """In which the operators keep states and parameters for activations of a type."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def common_type(op: str, **tensors: Tensor | None) -> torch.dtype:
    """The type of activations of several types: no value loses digits."""
    there = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    for name, tensor in there.items():
        if tensor.dtype not in FLOATING:
            raise ValueError(f"{op}: {name} must have dtype float32, float64, bfloat16 or float16, got {tensor.dtype}")
    types = [tensor.dtype for tensor in there.values()]
    out = types[0]
    for other in types[1:]:
        out = torch.promote_types(out, other)
    return out


def dense(x: Tensor) -> Tensor:
    """(B, ..., L) as a GPU's kernels read it fast: neither steps nor channels side by side are copied."""
    return x if x.device.type != "cuda" or x.stride(-1) == 1 or x.stride(-2) == 1 else x.contiguous()


def by_step(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, D, L) to (B, L, D), in memory as it is."""
    return dense(x.to(dtype)).transpose(1, 2)


def channel_last(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, D, L) to (B, L, D) with channels as neighbours, as products take them."""
    y = by_step(x, dtype)
    if y.stride(2) == 1 or y.shape[2] == 1:
        return y
    return torch.ops.adder.transposed(y.transpose(1, 2)) if y.device.type == "cuda" else y.contiguous()


def like_layout(y: Tensor, reference: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, L, D) to (B, D, L), in memory as reference (B, D, L) is: callers reshape what they get."""
    y = y.to(dtype)
    if reference.stride(2) != 1 or reference.shape[2] <= 1:
        return y.transpose(1, 2)
    return torch.ops.adder.transposed(y) if y.device.type == "cuda" else y.transpose(1, 2).contiguous()


class Slots:
    """The rows of a state that a batch refers to: all in order, or indices (B). A negative index stands for padding:
    its row reads some slot and writes none."""

    def __init__(self, op: str, state: Tensor, indices: Tensor | None, batch: int) -> None:
        self.state, self.indices = state, indices
        if indices is None:
            if state.shape[0] != batch:
                raise ValueError(f"{op}: state must have a row for each of the batch's {batch}, got {state.shape[0]}")
            return
        expect_shape(op, "indices", indices, "(batch)", (batch,))
        self.valid = indices >= 0
        self.rows = indices.clamp_min(0).to(torch.int64)

    def read(self) -> Tensor:
        if self.indices is None:
            # Where gradients are recorded the old values are kept: write() changes them in place.
            return self.state.clone() if torch.is_grad_enabled() else self.state
        return self.state.index_select(0, self.rows)

    def write(self, new: Tensor) -> None:
        if self.indices is None:
            self.state.copy_(new)
            return
        new = new.to(self.state.dtype)
        if len(self.valid):
            # Without a look at the values, for which a GPU would have to wait: padding writes what the first real row
            # writes, to the same slot; where there is none, what is there.
            shape = (-1, *[1] * (new.dim() - 1))
            first = self.valid.int().argmax()
            old = self.state.index_select(0, self.rows)
            new = torch.where(self.valid.view(shape), new, torch.where(self.valid[first], new[first], old[first]))
            self.state.index_copy_(0, torch.where(self.valid, self.rows, self.rows[first]), new)

    def without_padding(self, out: Tensor) -> Tensor:
        """out (B, ...), zero in rows of padding."""
        if self.indices is None:
            return out
        return torch.where(self.valid.view(-1, *[1] * (out.dim() - 1)), out, torch.zeros_like(out))
