"""mamba_ssm.ops.triton.layer_norm on Adder's add_norm."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import ops


def layer_norm_fn(x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None,
                  x1: None = None, weight1: None = None, bias1: None = None, eps: float = 1e-6, dropout_p: float = 0.0,
                  rowscale: None = None, prenorm: bool = False, residual_in_fp32: bool = False,
                  is_rms_norm: bool = False, return_dropout_mask: bool = False) -> Tensor | tuple[Tensor, Tensor]:
    """layer_norm_fn without its dropout, row scale and second input, which are refused.

    Args:
        x, residual: (..., dim). weight, bias: (dim).
        prenorm: also return x + residual, in residual's type; without residual in float32 where residual_in_fp32, else
            x's.

    Returns:
        The norm of x + residual (..., dim) in x's type.
    """
    for name, value in (("x1", x1), ("weight1", weight1), ("bias1", bias1), ("rowscale", rowscale),
                        ("dropout_p", dropout_p or None), ("return_dropout_mask", return_dropout_mask or None)):
        if value is not None:
            raise NotImplementedError(f"layer_norm_fn: {name} must not be given, Adder's add_norm has no such thing")
    real = torch.float64 if x.dtype == torch.float64 else torch.float32
    y, total = ops.add_norm(x, None if residual is None else residual.to(real), weight, bias,
                            kind="rms" if is_rms_norm else "layer", eps=eps)
    if not prenorm:
        return y
    kept = residual.dtype if residual is not None else torch.float32 if residual_in_fp32 else x.dtype
    return y, total.to(kept)


def rms_norm_fn(x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None, x1: None = None,
                weight1: None = None, bias1: None = None, eps: float = 1e-6, dropout_p: float = 0.0,
                rowscale: None = None, prenorm: bool = False, residual_in_fp32: bool = False,
                return_dropout_mask: bool = False) -> Tensor | tuple[Tensor, Tensor]:
    """layer_norm_fn with is_rms_norm."""
    return layer_norm_fn(x, weight, bias, residual, x1, weight1, bias1, eps, dropout_p, rowscale, prenorm,
                         residual_in_fp32, True, return_dropout_mask)


class RMSNorm(nn.Module):
    """mamba_ssm.ops.triton.layer_norm.RMSNorm."""

    def __init__(self, hidden_size: int, eps: float = 1e-5, dropout_p: float = 0.0, device=None, dtype=None) -> None:
        super().__init__()
        if dropout_p:
            raise NotImplementedError(f"RMSNorm: dropout_p must be 0, got {dropout_p}")
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size, device=device, dtype=dtype))
        self.register_parameter("bias", None)

    def forward(self, x: Tensor, residual: Tensor | None = None, prenorm: bool = False,
                residual_in_fp32: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        return rms_norm_fn(x, self.weight, None, residual, eps=self.eps, prenorm=prenorm,
                           residual_in_fp32=residual_in_fp32)
