"""adder.compat's scan functions against plain loops in double: values, last states, gradients, types, layouts."""

import pytest
import torch
from torch.nn import functional

import compat_references as reference
from adder import compat
from checks import name_of, pairwise
from compat_checks import DEVICE, close, compare, there

SCAN = {
    "B": ("constant", "step", "group", "groups"),
    "C": ("constant", "step", "group", "groups"),
    "complex": (False, True),
    "D": (False, True),
    "z": (False, True),
    "bias": (False, True),
    "softplus": (False, True),
    "dtype": (torch.float64, torch.float32, torch.bfloat16, torch.float16),
    "channel_last": (False, True),
    "L": (0, 1, 5, 70),
}


def make_scan(B, C, complex, D, z, bias, softplus, dtype, channel_last, L, batch=2, channels=4, state=3):
    rng = torch.Generator().manual_seed(L)
    real = torch.float64 if dtype == torch.float64 else torch.float32

    def values(*shape, type=real):
        return torch.randn(*shape, generator=rng, dtype=torch.float64).to(type)

    def activations():
        x = values(batch, channels, L, type=dtype)
        return x.transpose(1, 2).contiguous().transpose(1, 2) if channel_last else x

    def number(*shape):
        return torch.complex(values(*shape), values(*shape)) if complex else values(*shape)

    A = number(channels, state)
    decay = A.real if complex else A
    decay.copy_(-decay.abs() - 0.1)
    out = {"u": activations(), "delta": activations() if softplus else activations().abs() / 4, "A": A}
    groups = 2
    for name, kind in (("B", B), ("C", C)):
        middle = {"group": (1,), "groups": (groups,)}.get(kind, ())
        shape = (batch, *middle, state, (2 if complex else 1) * L)
        out[name] = number(channels, state) if kind == "constant" else values(*shape, type=dtype)
    out |= {"D": values(channels)} if D else {}
    out |= {"z": activations()} if z else {}
    out |= {"delta_bias": values(channels) / 2} if bias else {}
    return out | {"delta_softplus": softplus}


# B and C both with groups have the same number of them.
SCAN_ROWS = [row for row in pairwise(SCAN) if {row["B"], row["C"]} & {"constant"} or
             (row["B"] == "groups") == (row["C"] == "groups")]


@pytest.mark.parametrize("row", SCAN_ROWS, ids=name_of)
def test_selective_scan_fn(row):
    arguments = make_scan(**row)

    def with_state(**named):
        return compat.selective_scan_fn(**named, return_last_state=True)

    y, last = compare(with_state, reference.scan, arguments, row["dtype"])
    assert y.dtype == row["dtype"] and (row["L"] < 2 or y.stride() == arguments["u"].stride())
    real = torch.float64 if row["dtype"] == torch.float64 else torch.float32
    assert last.dtype == ((torch.complex128 if real == torch.float64 else torch.complex64) if row["complex"] else real)
    alone = compat.selective_scan_fn(**there(arguments))
    assert isinstance(alone, torch.Tensor)
    close(alone, y.detach().double(), row["dtype"], "without the state")


def test_last_state_has_a_constant_B():
    arguments = make_scan("constant", "step", False, False, False, False, True, torch.float64, False, 5)
    halved = {**arguments, "B": arguments["B"] / 2}
    last = [compat.selective_scan_fn(**a, return_last_state=True)[1] for a in (arguments, halved)]
    torch.testing.assert_close(last[0], 2 * last[1])


def test_scan_of_several_types():
    arguments = make_scan("step", "step", False, True, True, True, True, torch.float32, False, 9)
    arguments["u"] = arguments["u"].bfloat16()
    out = compat.selective_scan_fn(**arguments)
    assert out.dtype == torch.bfloat16
    close(out, reference.scan(**arguments)[0], torch.bfloat16, "y")


def test_scan_errors():
    good = make_scan("step", "step", False, True, True, True, True, torch.float32, False, 5)
    for name, value, message in (("delta", good["delta"][:, :2],
                                  r"delta must have shape \(batch, dim, seqlen\) = \(2, 4, 5\)"),
                                 ("B", good["B"][..., :4],
                                  r"B must have shape .* = \(2, 1, 3, 5\), got \(2, 1, 3, 4\)"),
                                 ("A", good["A"][:3], r"A must have shape \(dim, dstate\) with dim = 4, got \(3, 3\)"),
                                 ("u", good["u"].long(), "u must have dtype float32")):
        with pytest.raises(ValueError, match=f"selective_scan_fn: {message}"):
            compat.selective_scan_fn(**{**good, name: value})


INNER = {
    "B": ("input", "constant"),
    "C": ("input", "constant"),
    "complex": (False, True),
    "biases": (False, True),
    "norm": ("none", "rank", "dim"),
    "channel_last": (False, True),
    "dtype": (torch.float64, torch.float32),
}


@pytest.mark.parametrize("row", pairwise(INNER), ids=name_of)
def test_mamba_inner_fn(row):
    rng = torch.Generator().manual_seed(0)
    batch, length, channels, state, rank, model, width = 2, 6, 8, 3, 2, 5, 4
    values = 2 * state if row["complex"] else state

    def real(*shape):
        return torch.randn(*shape, generator=rng, dtype=torch.float64).to(row["dtype"])

    def number(*shape):
        return torch.complex(real(*shape), real(*shape)) if row["complex"] else real(*shape)

    xz = real(batch, length, 2 * channels).transpose(1, 2)
    A = number(channels, state)
    (A.real if row["complex"] else A).copy_(-real(channels, state).abs() - 0.1)
    selected = (row["B"] == "input") + (row["C"] == "input")
    arguments = dict(xz=xz if row["channel_last"] else xz.contiguous(), conv1d_weight=real(channels, 1, width),
                     conv1d_bias=real(channels) if row["biases"] else None,
                     x_proj_weight=real(rank + selected * values, channels) / 3, delta_proj_weight=real(channels, rank),
                     out_proj_weight=real(model, channels), out_proj_bias=real(model) if row["biases"] else None, A=A,
                     D=real(channels), delta_bias=real(channels))
    for name in ("B", "C"):
        if row[name] == "constant":
            arguments[name] = number(channels, state)
        elif row["biases"]:
            arguments[f"{name}_proj_bias"] = real(values)
    if row["norm"] != "none":
        arguments["dt_rms_weight"] = real(rank if row["norm"] == "rank" else channels)
        arguments |= {f"{name.lower()}_rms_weight": real(values) for name in ("B", "C") if row[name] == "input"}
    compare(compat.mamba_inner_fn, reference.inner, arguments, row["dtype"])


def test_mamba_inner_fn_under_autocast():
    rng = torch.Generator().manual_seed(0)
    xz, out = torch.randn(2, 16, 6, generator=rng), torch.randn(5, 8, generator=rng)
    rest = (torch.randn(8, 1, 4, generator=rng), None, torch.randn(8, 8, generator=rng) / 3,
            torch.randn(8, 2, generator=rng), out, torch.randn(5,
                                                               generator=rng), -torch.rand(8, 3, generator=rng) - 0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = compat.mamba_inner_fn(xz, *rest)
    assert got.dtype == torch.bfloat16
    close(got, reference.inner(xz, *rest), torch.bfloat16, "out")


@pytest.mark.parametrize("dtype", (torch.float64, torch.float32, torch.bfloat16))
@pytest.mark.parametrize("heads", (0, 2))
@pytest.mark.parametrize("groups", (0, 1, 2))
@pytest.mark.parametrize("indexed", (False, True))
@pytest.mark.parametrize("everything", (False, True))
def test_selective_state_update(dtype, heads, groups, indexed, everything):
    rng = torch.Generator().manual_seed(0)
    batch, state_size = 3, 4
    inner = (heads, 2) if heads else (4,)
    real = torch.float64 if dtype == torch.float64 else torch.float32

    def values(*shape, type=dtype):
        return torch.randn(*shape, generator=rng, dtype=torch.float64).to(type)

    slots = 5 if indexed else batch
    state = values(slots, *inner, state_size, type=real)
    arguments = dict(x=values(batch, *inner), dt=values(batch, *inner), A=-values(*inner, state_size, type=real).abs(),
                     B=values(batch, *((groups,) if groups else ()), state_size),
                     C=values(batch, *((groups,) if groups else ()), state_size))
    if everything:
        arguments |= dict(D=values(*inner, type=real), z=values(batch, *inner), dt_bias=values(*inner, type=real))
    indices = torch.tensor([3, -1, 0], dtype=torch.int32) if indexed else None

    # By the definition, element by element.
    ref, out = state.double().clone(), torch.zeros(batch, *inner, dtype=torch.float64)
    channels = arguments["x"][0].numel()
    for b in range(batch):
        slot = int(indices[b]) if indexed else b
        if slot < 0:
            continue
        for c in range(channels):
            at = (c // inner[1], c % inner[1]) if heads else (c,)
            pick = {k: v.double()[b][at] if k in ("x", "dt", "z") else v.double()[at] if k in ("A", "D", "dt_bias") else
                    v.double().reshape(batch, -1, state_size)[b, c // (channels // max(groups, 1))]
                    for k, v in arguments.items()}
            step = functional.softplus(pick["dt"] + pick.get("dt_bias", 0))
            ref[slot][at] = torch.exp(step * pick["A"]) * ref[slot][at] + step * pick["B"] * pick["x"]
            y = (ref[slot][at] * pick["C"]).sum() + pick.get("D", 0) * pick["x"]
            out[b][at] = y * functional.silu(pick["z"]) if everything else y

    state = state.to(DEVICE)
    pointer = state.data_ptr()
    got = compat.selective_state_update(state, **there(arguments), dt_softplus=True,
                                        state_batch_indices=None if indices is None else indices.to(DEVICE))
    assert got.dtype == dtype and got.shape == arguments["x"].shape and state.data_ptr() == pointer
    close(got, out, dtype, "out")
    close(state, ref, real, "state")


def test_state_update_of_padding_alone_and_of_a_half_state():
    state = torch.randn(3, 4, 2)
    before, x, A, B = state.clone(), torch.randn(2, 4), -torch.rand(4, 2), torch.randn(2, 2)
    out = compat.selective_state_update(state, x, x, A, B, B, state_batch_indices=torch.tensor([-1, -1]))
    assert torch.equal(out, torch.zeros_like(out)) and torch.equal(state, before)
    half, whole = state[:2].bfloat16(), state[:2].bfloat16().float()
    for s in (half, whole):
        y = compat.selective_state_update(s, x, x, A, B, B)
    assert half.dtype == torch.bfloat16 and torch.equal(half, whole.bfloat16()) and y.dtype == torch.float32
    with pytest.raises(ValueError,
                       match=r"selective_state_update: dt must have shape \(batch, dim\) = \(2, 4\), got \(2, 3\)"):
        compat.selective_state_update(half, x, x[:, :3], A, B, B)


def test_state_update_has_gradients():
    rng = torch.Generator().manual_seed(0)
    x, dt, A, B = (torch.randn(*s, generator=rng, dtype=torch.float64) for s in ((2, 3), (2, 3), (3, 2), (2, 2)))

    def two_steps(x, dt, A, B):
        state = torch.zeros(2, 3, 2, dtype=torch.float64)
        first = compat.selective_state_update(state, x, dt, -A.abs(), B, B, dt_softplus=True)
        return first, compat.selective_state_update(state, x, dt, -A.abs(), B, B, dt_softplus=True), state

    assert torch.autograd.gradcheck(two_steps, tuple(t.requires_grad_() for t in (x, dt, A, B)))
