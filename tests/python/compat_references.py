"""What mamba_ssm's and causal_conv1d's functions mean, in double and as plain loops over time, in their layouts."""

import torch
from torch.nn import functional


def double(tensor):
    if tensor is None:
        return None
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def at_step(tensor, t, channels, is_complex):
    """B or C of step t as (batch or 1, dim, dstate)."""
    tensor = double(tensor)
    if tensor.dim() == 2:
        return tensor.unsqueeze(0)
    tensor = tensor.unsqueeze(1) if tensor.dim() == 3 else tensor
    step = torch.complex(tensor[..., 2 * t], tensor[..., 2 * t + 1]) if is_complex else tensor[..., t]
    return step.repeat_interleave(channels // step.shape[1], dim=1)


def scan(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
    """(batch, dim, seqlen) and the last state, in double."""
    is_complex = A.is_complex()
    u, delta, A = double(u), double(delta), double(A)
    if delta_bias is not None:
        delta = delta + double(delta_bias)[:, None]
    if delta_softplus:
        delta = functional.softplus(delta)
    batch, channels, length = u.shape
    h, out = A.new_zeros(batch, *A.shape), []
    for t in range(length):
        step = delta[..., t, None]
        h = torch.exp(step * A) * h + step * at_step(B, t, channels, is_complex) * u[..., t, None]
        y = (at_step(C, t, channels, is_complex) * h).sum(-1)
        out.append(2 * y.real if is_complex else y)
    y = torch.stack(out, -1) if out else u
    if D is not None:
        y = y + double(D)[:, None] * u
    return (y if z is None else y * functional.silu(double(z))), h


def convolution(x, weight, bias=None, initial_states=None, seq_idx=None, activation=None):
    """(batch, dim, seqlen) and the last width - 1 inputs of each row, in double."""
    x, weight = double(x), double(weight)
    batch, channels, length = x.shape
    width = weight.shape[1]
    out, finals = [], []
    for row in range(batch):
        before = x.new_zeros(channels, width - 1) if initial_states is None else double(initial_states)[row]
        seen, last = [before[:, k] for k in range(width - 1)], None
        steps = []
        for t in range(length):
            number = None if seq_idx is None else int(seq_idx[row, t])
            if last is not None and number != last:
                seen = [x.new_zeros(channels) for _ in range(width - 1)]
            last = number
            if number is not None and number < 0:
                steps.append(x.new_zeros(channels))
                continue
            seen = [*seen, x[row, :, t]]
            y = sum(weight[:, k] * seen[len(seen) - width + k] for k in range(width))
            y = y if bias is None else y + double(bias)
            steps.append(y if activation is None else functional.silu(y))
        out.append(torch.stack(steps, -1) if steps else x[row])
        seen = seen[len(seen) - (width - 1):]
        finals.append(torch.stack(seen, -1) if seen else x.new_zeros(channels, 0))
    return torch.stack(out), torch.stack(finals)


def rms(x, weight, eps):
    return x if weight is None else x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * double(weight)


def inner(xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, out_proj_weight, out_proj_bias, A, B=None,
          C=None, D=None, delta_bias=None, B_proj_bias=None, C_proj_bias=None, delta_softplus=True, b_rms_weight=None,
          c_rms_weight=None, dt_rms_weight=None, b_c_dt_rms_eps=1e-6):
    """mamba_inner_fn, (batch, seqlen, d_model) in double."""
    x, z = double(xz).chunk(2, dim=1)
    u, _ = convolution(x, conv1d_weight.squeeze(1), conv1d_bias, activation="silu")
    projected = u.transpose(1, 2) @ double(x_proj_weight).T
    rank, values = delta_proj_weight.shape[1], A.shape[1] * (2 if A.is_complex() else 1)
    low, rest = projected[..., :rank], list(projected[..., rank:].split(values, dim=-1))
    low_norm = dt_rms_weight is not None and len(dt_rms_weight) == rank
    delta = rms(low, dt_rms_weight if low_norm else None, b_c_dt_rms_eps) @ double(delta_proj_weight).T
    delta = rms(delta, None if low_norm else dt_rms_weight, b_c_dt_rms_eps)

    def selected(given, bias, weight):
        if given is not None:
            return given
        part = rest.pop(0)
        part = rms(part if bias is None else part + double(bias), weight, b_c_dt_rms_eps)
        if A.is_complex():
            part = part.unflatten(-1, (-1, 2)).permute(0, 2, 1, 3).flatten(2)
            return part
        return part.transpose(1, 2)

    y, _ = scan(u, delta.transpose(1, 2), A, selected(B, B_proj_bias, b_rms_weight),
                selected(C, C_proj_bias, c_rms_weight), D, z, delta_bias, delta_softplus)
    out = y.transpose(1, 2) @ double(out_proj_weight).T
    return out if out_proj_bias is None else out + double(out_proj_bias)
