"""The operators of torch.ops.adder, typed and described.

Letters: B batch, L length, D channels, N states a channel, G groups, K width of the convolution, S sequences (B, or the
packed segments), V vocabulary. T is the type of the activations (float32, float64, bfloat16, float16), R float32, or
float64 where T is float64. Every operator has a CPU and a CUDA kernel, a Meta function and, but for sum_of_squares, a
gradient; torch.func's grad, vjp, jacrev and vmap (a slice at a time) go through it. There is neither a second nor a
forward-mode derivative (small_linear has a second): NotImplementedError where one is used. Wrong arguments raise
ValueError that names operator, argument, rule, what was expected and what came.

Under torch.autocast, activations that meet in one operator take the widest of their types, parameters, states and the
residual stream are float32, and linear_cross_entropy and small_linear take autocast's type; float64 stays.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_ops = torch.ops.adder


def selective_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None,
                   z: Tensor | None = None, delta_bias: Tensor | None = None, delta_softplus: bool = False,
                   discretization: str = "euler", initial_state: Tensor | None = None, mask: Tensor | None = None,
                   cu_seqlens: Tensor | None = None, reverse: bool = False) -> tuple[Tensor, Tensor]:
    """The selective state-space recurrence (arXiv 2312.00752, section 3.2, equations 1 to 4, Algorithm 2).

        h_t = e^(delta_t A) h_(t-1) + phi(delta_t A) delta_t B_t u_t
        y_t = (C_t h_t + D u_t) silu(z_t)                      2 Re(C_t h_t) where A is complex

    Args:
        u, delta: (B, L, D) T. delta is the step size, dimensionless; delta_bias is added to it first, then softplus
            taken.
        A: (D, N) R or complex R; real parts below 0 for a state that decays.
        B, C: (B, L, G, N) T, channel d reads group d / (D / G); A complex: (B, L, G, 2 N), real and imaginary part of
            each state side by side. Or constant, (D, N) in A's type.
        D, delta_bias: (D) R.
        z: (B, L, D) T, the gate.
        discretization: "euler", phi = 1, as the published models; or "zoh", phi(x) = (e^x - 1) / x, equation 4.
        initial_state: (S, D, N) in A's type; None: zeros.
        mask: (B, L) bool; a step that is False leaves the state alone, its y is 0.
        cu_seqlens: (S + 1) int64 on the CPU, B = 1: packed sequences, the s-th at [cu_seqlens[s], cu_seqlens[s + 1]).
        reverse: time runs from the last step to the first.

    Returns:
        y (B, L, D) T and the state after (S, D, N), which continues the sequence in the next call. Gradients go through
        both. y lies in memory as u does, with channels or with steps side by side; so do the gradients of inputs per
        step.

    Raises:
        ValueError: a shape, type, device or cu_seqlens that breaks a rule above.
    """
    return _ops.selective_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, discretization, initial_state, mask,
                               cu_seqlens, reverse)


def causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, activation: str = "none",
                  initial_window: Tensor | None = None, mask: Tensor | None = None, cu_seqlens: Tensor | None = None,
                  reverse: bool = False) -> tuple[Tensor, Tensor]:
    """The causal depthwise convolution before the scan (arXiv 2312.00752, section 3.4, figure 3).

        y_t = act(bias + sum_k weight_k x_(t - K + 1 + k))

    Args:
        x: (B, L, D) T.
        weight: (D, K) R; weight[:, K - 1] meets the step itself.
        bias: (D) R.
        activation: "none" or "silu".
        initial_window: (S, K - 1, D) R, the inputs before the first, oldest first; None: zeros.
        mask: (B, L) bool; a step that is False is left out as if the sequence did not have it, its y is 0.
        cu_seqlens, reverse: as in selective_scan.

    Returns:
        y (B, L, D) T, in memory as x, and the window after (S, K - 1, D) R.

    Raises:
        ValueError: a shape, type, device or activation that breaks a rule above.
    """
    return _ops.causal_conv1d(x, weight, bias, activation=activation, initial_window=initial_window, mask=mask,
                              cu_seqlens=cu_seqlens, reverse=reverse)


def add_norm(x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None = None, *, kind: str = "rms",
             eps: float = 1e-5, out_dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """x + residual and its norm in one pass: what stands before each block (arXiv 2312.00752, section 3.4).

        r = x + residual
        y = (r - m) / sqrt(mean((r - m)^2) + eps) * weight + bias          m = mean(r) for "layer", 0 for "rms"

    Args:
        x: (..., D) T. residual: (..., D) R or None.
        weight, bias: (D) in any of the four types, used in R.
        kind: "rms" or "layer". eps: in units of x squared.
        out_dtype: the type of y; None: x's.

    Returns:
        y (..., D) and r (..., D) R.

    Raises:
        ValueError: a shape, type, device or kind that breaks a rule above.
    """
    return _ops.add_norm(x, residual, weight, bias, kind=kind, eps=eps, out_dtype=out_dtype)


def linear_cross_entropy(x: Tensor, weight: Tensor, target: Tensor, *, ignore_index: int = -100,
                         vocab: int = -1) -> tuple[Tensor, Tensor, Tensor]:
    """Cross entropy of softmax(x weight^T), whose logits are never all in memory.

    Args:
        x: (M, D) T. weight: (V, D) T, or float32 where T is bfloat16 or float16.
        target: (M) int64 in [0, vocab), or ignore_index: left out.
        vocab: the real vocabulary where weight has padding rows; -1: V.

    Returns:
        loss () R, the mean over the targets that count, in nats; each loss (M) R and the most probable token (M) int64,
        both without gradient.

    Raises:
        ValueError: a shape, type, device or vocab that breaks a rule above; on the CPU, a target outside [0, vocab).
    """
    return _ops.linear_cross_entropy(x, weight, target, ignore_index=ignore_index, vocab=vocab)


def small_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x weight^T + bias for few rows, as in decoding: a row's bits do not depend on the rows beside it.

    Args:
        x: (..., I) T. weight: (O, I) T, or bfloat16 or float16 where T is float32. bias: (O), used in R.

    Returns:
        (..., O) T.

    Raises:
        ValueError: a shape, type or device that breaks a rule above.
    """
    return _ops.small_linear(x, weight, bias)


def sum_of_squares(tensors: Sequence[Tensor]) -> Tensor:
    """The sum of the squares of all elements, for the norm of gradients.

    Args:
        tensors: float32 or float64, of any shapes, on one device; none: 0.

    Returns:
        () float64, without gradient.

    Raises:
        ValueError: another type or device. NotImplementedError: a tensor that requires gradients, outside no_grad.
    """
    if not tensors:
        return torch.zeros((), dtype=torch.float64)
    return _ops.sum_of_squares(list(tensors))
