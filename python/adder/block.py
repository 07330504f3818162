"""The Mamba block, as adder/nn/mamba.cpp has it: same parameters, same initialisation, same operators."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import _register_namedtuple

from . import ops

Layer = TypeVar("Layer", bound=nn.Module)
SMALL_ROWS = 8  # up to so many rows, reading the weights is what costs


@dataclass(frozen=True)
class MambaOptions:
    """The choices of one selective SSM block (arXiv 2312.00752, sections 3.2 to 3.6; the ablations of section 4.6)."""

    d_state: int = 16
    """states per channel, N"""
    d_conv: int = 4
    """width of the causal convolution"""
    expand: int = 2
    """inner channels per model channel, E"""
    dt_rank: int | str = "auto"
    """rank of the delta projection: "auto" (d_model / 16, rounded up), a number, or "none" (delta constant)"""
    selective_B: bool = True
    """B depends on the input"""
    selective_C: bool = True
    """C depends on the input"""
    A_init: str = "s4d-real"
    """A_n = -(n + 1) "s4d-real", -1/2 + n i "s4d-lin", -exp(normal) + normal i "random"; imaginary only where
    complex"""
    complex: bool = False
    """complex states"""
    discretization: str = "euler"
    """Bbar = delta B ("euler", as the published models) or the exact zero-order hold ("zoh")"""
    dt_min: float = 1e-3
    """smallest initial step size"""
    dt_max: float = 0.1
    """largest initial step size"""
    dt_init: str = "random"
    """initial weights of the delta projection: "random" or "constant\""""
    dt_scale: float = 1.0
    """their scale, times rank^-1/2"""
    dt_init_floor: float = 1e-4
    """initial step sizes are not below this"""
    conv_bias: bool = True
    """the convolution has a bias"""
    bias: bool = False
    """in_proj and out_proj have biases"""
    inner_norm: str = "none"
    """"rms": RMS norm without weights on B, C and the low-rank delta, as in Falcon Mamba; or "none\""""
    inner_norm_eps: float = 1e-6
    """its epsilon"""

    def __post_init__(self) -> None:
        for name in ("d_state", "d_conv", "expand"):
            value = getattr(self, name)
            _require(isinstance(value, int) and value >= 1, f"{name} must be a whole number >= 1, got {value!r}")
        rank = self.dt_rank
        _require(rank in ("auto", "none") or (isinstance(rank, int) and rank >= 1),
                 f'dt_rank must be "auto", "none" or a whole number >= 1, got {rank!r}')
        for name, choices in (("A_init", ("s4d-real", "s4d-lin", "random")), ("discretization", ("euler", "zoh")),
                              ("dt_init", ("random", "constant")), ("inner_norm", ("none", "rms"))):
            _require(getattr(self, name) in choices, f"{name} must be one of {choices}, got {getattr(self, name)!r}")
        for name in ("dt_min", "dt_max", "dt_init_floor"):
            _require(getattr(self, name) > 0, f"{name} must be above 0, got {getattr(self, name)}")
        _require(self.dt_max >= self.dt_min, f"dt_max must not be below dt_min, got {self.dt_max} and {self.dt_min}")

    def rank(self, d_model: int) -> int:
        """What dt_rank stands for in a block of d_model channels; 0 for "none"."""
        if self.dt_rank == "auto":
            return math.ceil(d_model / 16)
        return 0 if self.dt_rank == "none" else int(self.dt_rank)


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(f"Mamba: {message}")


class MambaState(NamedTuple):
    """The recurrent state of one block for S sequences, both tensors float32 (float64)."""

    conv: Tensor
    """(S, K - 1, D): the last inputs of the convolution, oldest first"""
    ssm: Tensor
    """(S, D, N), complex for complex states"""

    def detach(self) -> MambaState:
        """The same values, through which no gradient goes."""
        return MambaState(self.conv.detach(), self.ssm.detach())

    def clone(self) -> MambaState:
        """A copy."""
        return MambaState(self.conv.clone(), self.ssm.clone())

    def select(self, index: Tensor) -> MambaState:
        """The sequences `index` (int64), as when some of a batch end or are copied."""
        return MambaState(self.conv.index_select(0, index), self.ssm.index_select(0, index))


# So that torch.export can save programs that take or give one.
_register_namedtuple(MambaState, serialized_type_name="adder.MambaState")
torch.serialization.add_safe_globals([MambaState])  # and torch.load read them


def uninitialised(kind: type[Layer], *arguments: Any, **named: Any) -> Layer:
    """A layer whose parameters are filled later, on the device that torch makes tensors on ("meta" too)."""
    return nn.utils.skip_init(kind, *arguments, device=torch.get_default_device(), **named)


def uniform_fan_in(tensor: Tensor, fan_in: int) -> None:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)), PyTorch's default for linear and convolution weights."""
    bound = 1 / math.sqrt(fan_in)
    nn.init.uniform_(tensor, -bound, bound)


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """layer(x), by the operator for few rows where it applies. A layer of another class is just called."""
    if torch.compiler.is_compiling():  # a graph is for any number of rows
        return layer(x)
    few = x.numel() <= SMALL_ROWS * x.shape[-1] and x.device.type == "cpu" and not torch.is_grad_enabled()
    plain = type(layer) is nn.Linear and not layer._forward_hooks and not layer._forward_pre_hooks
    if few and plain and x.dtype == layer.weight.dtype and not torch.is_autocast_enabled("cpu"):
        return ops.small_linear(x, layer.weight, layer.bias)
    return layer(x)


def accumulator_type(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _without_mean_square(x: Tensor, eps: float) -> Tensor:
    wide = x.to(accumulator_type(x.dtype))
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


class _DeltaBias(nn.Module):
    """The bias alone, where delta does not depend on the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(channels))


class Mamba(nn.Module):
    """The Mamba block (arXiv 2312.00752, section 3.4, figure 3): in_proj, causal convolution with SiLU, selective SSM
    gated by SiLU(z), out_proj. Parameters have the names of the published checkpoints.

    Args:
        d_model: channels of input and output.
        options: the block's choices; single ones can be given by name, `Mamba(64, d_state=32)`.
        n_layer: of the model it is part of; out_proj starts at 1/sqrt(n_layer) of its size.

    Raises:
        ValueError: an option outside its range or choices.
    """

    in_proj: nn.Linear
    conv1d: nn.Conv1d
    x_proj: nn.Linear | None
    dt_proj: nn.Linear | _DeltaBias
    out_proj: nn.Linear
    A_imag: nn.Parameter | None
    B: nn.Parameter | None
    C: nn.Parameter | None

    def __init__(self, d_model: int, options: MambaOptions | None = None, *, n_layer: int = 1,
                 **choices: Any) -> None:
        super().__init__()
        _require(d_model >= 1, f"d_model must be at least 1, got {d_model}")
        o = replace(options or MambaOptions(), **choices)
        self.options, self.d_model, self.d_inner, self.rank = o, d_model, o.expand * d_model, o.rank(d_model)
        self._values = 2 * o.d_state if o.complex else o.d_state
        inner, shape = self.d_inner, (self.d_inner, o.d_state)
        self.in_proj = uninitialised(nn.Linear, d_model, 2 * inner, bias=o.bias)
        self.conv1d = uninitialised(nn.Conv1d, inner, inner, o.d_conv, groups=inner, padding=o.d_conv - 1,
                                    bias=o.conv_bias)
        self._parts = [size for size, there in ((self.rank, self.rank > 0), (self._values, o.selective_B),
                                                (self._values, o.selective_C)) if there]
        self.x_proj = uninitialised(nn.Linear, inner, sum(self._parts), bias=False) if self._parts else None
        self.dt_proj = uninitialised(nn.Linear, self.rank, inner) if self.rank else _DeltaBias(inner)
        self.A_log = nn.Parameter(torch.empty(shape))
        self.A_imag = nn.Parameter(torch.empty(shape)) if o.complex else None
        constant = (*shape, 2) if o.complex else shape
        self.B = None if o.selective_B else nn.Parameter(torch.empty(constant))
        self.C = None if o.selective_C else nn.Parameter(torch.empty(constant))
        self.D = nn.Parameter(torch.empty(inner))
        self.out_proj = uninitialised(nn.Linear, inner, d_model, bias=o.bias)
        self.reset_parameters(n_layer)

    @torch.no_grad()
    def reset_parameters(self, n_layer: int = 1) -> None:
        """Draws all parameters anew, as the published code does (arXiv 2312.00752, section 3.6)."""
        o = self.options
        uniform_fan_in(self.in_proj.weight, self.d_model)
        uniform_fan_in(self.conv1d.weight, o.d_conv)
        if self.conv1d.bias is not None:
            uniform_fan_in(self.conv1d.bias, o.d_conv)
        if self.x_proj is not None:
            uniform_fan_in(self.x_proj.weight, self.d_inner)
        if not isinstance(self.dt_proj, _DeltaBias):
            scale = o.dt_scale / math.sqrt(self.rank)
            low = scale if o.dt_init == "constant" else -scale
            self.dt_proj.weight.fill_(scale) if low == scale else self.dt_proj.weight.uniform_(low, scale)
        # softplus^-1 of step sizes drawn log-uniformly, as the published code has it (the paper's text says uniform).
        span = math.log(o.dt_max) - math.log(o.dt_min)
        dt = torch.exp(torch.rand_like(self.dt_proj.bias) * span + math.log(o.dt_min)).clamp_min(o.dt_init_floor)
        self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))
        n = torch.arange(o.d_state, dtype=self.A_log.dtype, device=self.A_log.device)
        if o.A_init == "s4d-real":
            self.A_log.copy_(torch.log(n + 1))
        elif o.A_init == "s4d-lin":
            self.A_log.fill_(math.log(0.5))
        else:
            self.A_log.normal_()
        if self.A_imag is not None:
            self.A_imag.normal_() if o.A_init == "random" else self.A_imag.copy_(n * (o.A_init == "s4d-lin"))
        if self.B is not None:  # constant B and C as in S4D: ones, and normal values of unit variance
            self.B.copy_(torch.tensor([1.0, 0.0])) if o.complex else self.B.fill_(1)
        if self.C is not None:
            self.C.normal_(std=math.sqrt(0.5) if o.complex else 1)
        self.D.fill_(1)
        uniform_fan_in(self.out_proj.weight, self.d_inner)
        self.out_proj.weight.div_(math.sqrt(n_layer))
        for layer in (self.in_proj, self.out_proj):
            if layer.bias is not None:
                layer.bias.zero_()

    def forward(self, x: Tensor, state: MambaState | None = None, *, mask: Tensor | None = None,
                cu_seqlens: Tensor | None = None, reverse: bool = False) -> tuple[Tensor, MambaState]:
        """The block's output and the state after it. Any way of cutting a sequence gives the same outputs, states and
        gradients within rounding.

        Args:
            x: (B, L, d_model), any L from 0, of the type of the projections' weights or under autocast.
            state: what an earlier call gave back; None: zeros.
            mask: (B, L) bool; a step that is False leaves the state alone.
            cu_seqlens: (S + 1) int64 on the CPU, B = 1: packed sequences, the state is of S then.
            reverse: time runs from the last step to the first.

        Returns:
            y (B, L, d_model) and the state after the last step.

        Raises:
            ValueError: x of another width; what adder.ops.causal_conv1d and selective_scan refuse.
        """
        o = self.options
        if x.dim() != 3 or x.shape[2] != self.d_model:
            raise ValueError(
                f"Mamba: x must have shape (B, L, d_model) with d_model = {self.d_model}, got {tuple(x.shape)}")
        inner, z = linear(self.in_proj, x).chunk(2, dim=-1)
        real = accumulator_type(inner.dtype)
        where: dict[str, Any] = {"mask": mask, "cu_seqlens": cu_seqlens, "reverse": reverse}
        bias = self.conv1d.bias
        u, window = ops.causal_conv1d(inner, self.conv1d.weight.squeeze(1).to(real),
                                      None if bias is None else bias.to(real), activation="silu",
                                      initial_window=state.conv if state else None, **where)
        parts = list(linear(self.x_proj, u).split(self._parts, dim=-1)) if self.x_proj is not None else []
        if o.inner_norm == "rms":
            parts = [_without_mean_square(part, o.inner_norm_eps) for part in parts]
        if not isinstance(self.dt_proj, _DeltaBias):
            delta = functional.linear(parts.pop(0), self.dt_proj.weight)
        else:
            delta = u.new_zeros(1, 1, 1).expand_as(u)
        B = parts.pop(0).unsqueeze(2) if self.B is None else self._constant(self.B, real)
        C = parts.pop(0).unsqueeze(2) if self.C is None else self._constant(self.C, real)
        A = -torch.exp(self.A_log.to(real))
        if self.A_imag is not None:
            A = torch.complex(A, self.A_imag.to(real))
        y, ssm = ops.selective_scan(u, delta, A, B, C, D=self.D.to(real), z=z, delta_bias=self.dt_proj.bias.to(real),
                                    delta_softplus=True, discretization=o.discretization,
                                    initial_state=state.ssm if state else None, **where)
        return linear(self.out_proj, y), MambaState(window, ssm)

    def _constant(self, parameter: Tensor, real: torch.dtype) -> Tensor:
        return torch.view_as_complex(parameter.to(real)) if self.options.complex else parameter.to(real)

    def extra_repr(self) -> str:
        return f"d_model={self.d_model}, d_state={self.options.d_state}"
