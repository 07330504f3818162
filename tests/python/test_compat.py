"""adder.compat against plain loops in double: values, last states, gradients, types, layouts."""

import os
import subprocess
import sys

import pytest
import torch
from torch.nn import functional

import compat_references as reference
from adder import compat
from checks import leaves, name_of, pairwise

DEVICE = os.environ.get("ADDER_TEST_DEVICE", "cpu")  # the reference stays on the CPU

# Errors relative to the largest element.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6, torch.bfloat16: 2e-2, torch.float16: 4e-3}


def there(arguments):
    return {name: value.to(DEVICE) if isinstance(value, torch.Tensor) else value for name, value in arguments.items()}


def close(got, want, dtype, what):
    got, want = got.cpu(), want.cpu()
    assert got.shape == want.shape, what
    if want.numel():
        error = (got.to(want.dtype) - want).abs().max() / want.abs().max().clamp_min(1e-3)
        assert error <= TOLERANCE[dtype], f"{what}: {error}"


def outputs(out):
    return out if isinstance(out, tuple) else (out,)


def compare(function, ref, arguments, dtype):
    """Outputs, and gradients of a random linear function of them, of function and of ref in double."""
    mine = {**there(arguments), **leaves(there(arguments))}
    theirs = {name: value.detach().clone().requires_grad_() if name in leaves(arguments) else value
              for name, value in arguments.items()}
    got, want = outputs(function(**mine)), outputs(ref(**theirs))
    rng = torch.Generator().manual_seed(0)
    weights = [torch.randn(x.shape, generator=rng, dtype=torch.float64) for x in want]
    for i, (x, y) in enumerate(zip(got, want, strict=True)):
        close(x, y, dtype, f"output {i}")
    totals = [sum((x.abs().square() * w.to(x.device)).sum() if x.is_complex() else (x.double() * w.to(x.device)).sum()
                  for x, w in zip(out, weights)) for out in (got, want)]
    if not totals[1].requires_grad:
        return got
    keys = list(leaves(arguments))
    unused = dict(allow_unused=True, materialize_grads=True)  # at a length of 0
    grads = torch.autograd.grad(totals[0], [mine[k] for k in keys], **unused)
    wanted = torch.autograd.grad(totals[1], [theirs[k] for k in keys], **unused)
    for key, x, y in zip(keys, grads, wanted):
        close(x, y, dtype, f"gradient of {key}")
    return got


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
        shape = (batch, *{"step": (), "group": (1,), "groups": (groups,)}.get(kind, ()), state, (2 if complex else 1) * L)
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
    for name, value, message in (("delta", good["delta"][:, :2], r"delta must have shape \(batch, dim, seqlen\) = \(2, 4, 5\)"),
                                 ("B", good["B"][..., :4], r"B must have shape .* = \(2, 1, 3, 5\), got \(2, 1, 3, 4\)"),
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
    arguments = dict(
        xz=xz if row["channel_last"] else xz.contiguous(), conv1d_weight=real(channels, 1, width),
        conv1d_bias=real(channels) if row["biases"] else None, x_proj_weight=real(rank + selected * values, channels) / 3,
        delta_proj_weight=real(channels, rank), out_proj_weight=real(model, channels),
        out_proj_bias=real(model) if row["biases"] else None, A=A, D=real(channels), delta_bias=real(channels))
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
    rest = (torch.randn(8, 1, 4, generator=rng), None, torch.randn(8, 8, generator=rng) / 3, torch.randn(8, 2, generator=rng),
            out, torch.randn(5, generator=rng), -torch.rand(8, 3, generator=rng) - 0.1)
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
    with pytest.raises(ValueError, match=r"selective_state_update: dt must have shape \(batch, dim\) = \(2, 4\), got \(2, 3\)"):
        compat.selective_state_update(half, x, x[:, :3], A, B, B)


def test_state_update_has_gradients():
    rng = torch.Generator().manual_seed(0)
    x, dt, A, B = (torch.randn(*s, generator=rng, dtype=torch.float64) for s in ((2, 3), (2, 3), (3, 2), (2, 2)))

    def two_steps(x, dt, A, B):
        state = torch.zeros(2, 3, 2, dtype=torch.float64)
        first = compat.selective_state_update(state, x, dt, -A.abs(), B, B, dt_softplus=True)
        return first, compat.selective_state_update(state, x, dt, -A.abs(), B, B, dt_softplus=True), state

    assert torch.autograd.gradcheck(two_steps, tuple(t.requires_grad_() for t in (x, dt, A, B)))


CONV = {
    "width": (1, 2, 4, 5),
    "bias": (False, True),
    "activation": (None, "silu", "swish"),
    "initial": (False, True),
    "seq_idx": (False, True, "padding"),
    "channel_last": (False, True),
    "dtype": (torch.float64, torch.float32, torch.bfloat16),
    "L": (0, 1, 2, 9),
}


@pytest.mark.parametrize("row", pairwise(CONV), ids=name_of)
def test_causal_conv1d_fn(row):
    rng = torch.Generator().manual_seed(1)
    batch, channels, length, width, dtype = 2, 3, row["L"], row["width"], row["dtype"]

    def values(*shape):
        return torch.randn(*shape, generator=rng, dtype=torch.float64).to(dtype)

    x = values(batch, length, channels).transpose(1, 2)
    arguments = {"x": x if row["channel_last"] else x.contiguous(), "weight": values(channels, width),
                 "activation": row["activation"]}
    arguments |= {"bias": values(channels)} if row["bias"] else {}
    arguments |= {"initial_states": values(batch, channels, width - 1)} if row["initial"] else {}
    if row["seq_idx"]:
        numbers = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, 2], [0, 1, 1, 1, 1, 1, 1, 1, 3]], dtype=torch.int32)[:, :length]
        if row["seq_idx"] == "padding" and length:
            numbers[:, -1] = -1
        arguments["seq_idx"] = numbers.contiguous()

    def with_states(**named):
        return compat.causal_conv1d_fn(**named, return_final_states=True)

    if row["seq_idx"] == "padding":  # the state of a last sequence that is all padding is no one's
        compare(compat.causal_conv1d_fn, lambda **named: reference.convolution(**named)[0], arguments, dtype)
        return
    y, final = compare(with_states, reference.convolution, arguments, dtype)
    assert y.dtype == dtype and final.dtype == dtype
    assert length < 2 or y.stride() == arguments["x"].stride()
    out = torch.full_like(final, torch.nan)
    assert compat.causal_conv1d_fn(**there(arguments), return_final_states=True, final_states_out=out)[1] is out
    assert torch.equal(out, final)


@pytest.mark.parametrize("width", (1, 2, 4))
@pytest.mark.parametrize("extra", (0, 1, 3))
@pytest.mark.parametrize("length", (None, 1, 2, 6))
@pytest.mark.parametrize("ring", (False, True))
@pytest.mark.parametrize("indexed", (False, True))
def test_causal_conv1d_update(width, extra, length, ring, indexed):
    rng = torch.Generator().manual_seed(2)
    batch, channels, size = 3, 2, width - 1 + extra
    past = torch.randn(batch, channels, 11, generator=rng)
    new = torch.randn(batch, channels, length or 1, generator=rng)
    weight, bias = torch.randn(channels, width, generator=rng), torch.randn(channels, generator=rng)
    counts = torch.tensor([11, 9, 10], dtype=torch.int32)

    def state_of(stream, count):
        """What conv_state holds after `count` steps of a row, in order or as a ring."""
        if not ring:
            return stream[:, stream.shape[1] - size:]
        state = torch.zeros(channels, size)
        for t in range(max(count - size, 0), count) if size else ():
            state[:, t % size] = stream[:, t]
        return state

    rows = [past[b, :, :int(counts[b])] if ring else past[b] for b in range(batch)]
    indices = torch.tensor([4, -1, 1], dtype=torch.int32) if indexed else None
    slots = [4, None, 1] if indexed else [0, 1, 2]
    state = torch.randn(5 if indexed else batch, channels, size, generator=rng)
    for b, slot in enumerate(slots):
        if slot is not None:
            state[slot] = state_of(rows[b], int(counts[b]))
    wanted = state.clone()
    state = state.to(DEVICE)
    got = compat.causal_conv1d_update(**there(dict(
        x=new[..., 0] if length is None else new, conv_state=state, weight=weight, bias=bias, activation="silu",
        cache_seqlens=counts if ring else None, conv_state_indices=indices)))
    assert got.shape == (new[..., 0] if length is None else new).shape
    got = got.unsqueeze(2) if length is None else got
    for b, slot in enumerate(slots):
        if slot is None:
            assert torch.equal(got[b], torch.zeros_like(got[b]))
            continue
        stream = torch.cat([rows[b], new[b]], 1)
        y, _ = reference.convolution(stream.unsqueeze(0), weight, bias, activation="silu")
        close(got[b], y[0, :, -new.shape[2]:], torch.float32, f"row {b}")
        wanted[slot] = state_of(stream, int(counts[b]) + new.shape[2])
    assert torch.equal(state.cpu(), wanted)


def test_conv_errors():
    x = torch.randn(2, 3, 5)
    with pytest.raises(NotImplementedError, match='causal_conv1d_fn: activation must be None, "silu" or "swish", got \'relu\''):
        compat.causal_conv1d_fn(x, torch.randn(3, 4), activation="relu")
    with pytest.raises(ValueError, match=r"weight must have shape \(dim, width\) with dim = 3, got \(2, 4\)"):
        compat.causal_conv1d_fn(x, torch.randn(2, 4))
    with pytest.raises(ValueError, match="conv_state must have state_len >= width - 1 = 3, got 2"):
        compat.causal_conv1d_update(x, torch.randn(2, 3, 2), torch.randn(3, 4))


@pytest.mark.parametrize("lengths", ((), (0,), (2, 0, 5, 1)))
@pytest.mark.parametrize("state_len", (0, 1, 3, 7))
def test_varlen_states(lengths, state_len):
    x = torch.randn(sum(lengths), 3)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    got = compat.causal_conv1d_varlen_states(x, offsets, state_len)
    wanted = torch.zeros(len(lengths), 3, state_len)
    for s, n in enumerate(lengths):
        for k in range(min(n, state_len)):
            wanted[s, :, state_len - 1 - k] = x[int(offsets[s + 1]) - 1 - k]
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("is_rms", (False, True))
@pytest.mark.parametrize("residual", (None, torch.float32, torch.bfloat16))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_layer_norm_fn(is_rms, residual, dtype):
    rng = torch.Generator().manual_seed(0)
    x, weight, bias = torch.randn(2, 3, 8, generator=rng).to(dtype), torch.randn(8, generator=rng), torch.randn(8, generator=rng)
    r = None if residual is None else torch.randn(2, 3, 8, generator=rng).to(residual)
    total = x.double() + (0 if r is None else r.double())
    centred = total if is_rms else total - total.mean(-1, keepdim=True)
    wanted = centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-5) * weight + bias
    for in_fp32 in (False, True):
        y, kept = compat.layer_norm_fn(x, weight, bias, residual=r, eps=1e-5, prenorm=True, residual_in_fp32=in_fp32,
                                       is_rms_norm=is_rms)
        assert y.dtype == dtype and kept.dtype == (residual or (torch.float32 if in_fp32 else dtype))
        close(y, wanted, dtype, "y")
        close(kept, total, kept.dtype, "residual")
    assert torch.equal(compat.layer_norm_fn(x, weight, bias, residual=r, eps=1e-5, is_rms_norm=is_rms), y)
    with pytest.raises(NotImplementedError, match="dropout_p must not be given"):
        compat.rms_norm_fn(x, weight, dropout_p=0.1)


def run(script, *arguments):
    out = subprocess.run([sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr[-3000:]
    return out.stdout


PRELUDE = """
import pathlib, sys
sys.path.insert(0, sys.argv[1])
import torch
import adder.compat
"""


def package_folder():
    return compat.__path__[0].removesuffix("/adder/compat")


def test_programs_import_the_original_names():
    run(PRELUDE + """
adder.compat.install()
adder.compat.install()
import importlib.util
import causal_conv1d, mamba_ssm
from causal_conv1d import causal_conv1d_fn, causal_conv1d_update
from causal_conv1d.causal_conv1d_interface import causal_conv1d_ref
from causal_conv1d.causal_conv1d_varlen import causal_conv1d_varlen_states
from mamba_ssm import Mamba
from mamba_ssm.modules.mamba_simple import Mamba as Same
from mamba_ssm.ops.selective_scan_interface import mamba_inner_fn, selective_scan_fn, selective_scan_ref
from mamba_ssm.ops.triton.layer_norm import RMSNorm, layer_norm_fn, rms_norm_fn
from mamba_ssm.ops.triton.selective_state_update import selective_state_update
assert importlib.util.find_spec("mamba_ssm") and mamba_ssm.ops.selective_scan_interface.selective_scan_fn is selective_scan_fn
assert selective_scan_fn is adder.compat.selective_scan_fn and Mamba is Same
try:
    import mamba_ssm.ops.triton.ssd_combined
except ModuleNotFoundError:
    pass
else:
    raise AssertionError("no error")

torch.manual_seed(0)
block = Mamba(16, d_state=4, layer_idx=0, use_fast_path=True)
x = torch.randn(2, 9, 16)
whole = block(x)
class Params:
    seqlen_offset, key_value_memory_dict = 0, {}
pieces = []
for begin, end in ((0, 4), (4, 5), (5, 9)):
    Params.seqlen_offset = begin
    pieces.append(block(x[:, begin:end], inference_params=Params))
assert torch.allclose(torch.cat(pieces, 1), whole, atol=1e-6)
assert RMSNorm(16)(x).shape == x.shape

adder.compat.uninstall()
assert "mamba_ssm" not in sys.modules and importlib.util.find_spec("mamba_ssm") is None
""", package_folder())


TRANSFORMERS = PRELUDE + """
from transformers import FalconMambaConfig, FalconMambaForCausalLM, MambaConfig, MambaForCausalLM
falcon, device = sys.argv[3] == "True", sys.argv[4]
model_class, config_class = (FalconMambaForCausalLM, FalconMambaConfig) if falcon else (MambaForCausalLM, MambaConfig)

def results():
    out = {}
    for training in (False, True):
        for bias in (False, True):
            torch.manual_seed(1)
            config = config_class(vocab_size=50, hidden_size=32, num_hidden_layers=2, state_size=8, use_bias=bias)
            model = model_class(config).to(device).train(training)
            ids = torch.randint(1, 50, (2, 17), generator=torch.Generator().manual_seed(0)).to(device)
            mask = torch.ones_like(ids)
            mask[0, :3] = 0
            loss = model(ids, labels=ids, attention_mask=mask).loss
            loss.backward()
            model.eval()
            tokens = model.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False, pad_token_id=0)
            of_model = {"loss": loss.detach(), "tokens": tokens} | {name: p.grad for name, p in model.named_parameters()}
            out |= {f"training={training},bias={bias}: {name}": value for name, value in of_model.items()}
    return out
"""


@pytest.mark.parametrize("falcon", (False, True))
def test_transformers(falcon, tmp_path):
    """Losses, gradients and greedy tokens of tiny models: transformers' own, on Adder before and after its import."""
    pytest.importorskip("transformers", reason="transformers is not installed")
    run(TRANSFORMERS + """
own = results()
calls = []
for name in ("causal_conv1d", "selective_scan"):
    setattr(adder.ops, name, (lambda f, n: lambda *a, **k: (calls.append(n), f(*a, **k))[1])(getattr(adder.ops, name), name))
adder.compat.install()
torch.save({"own": own, "patched": results()}, sys.argv[2])
assert {"causal_conv1d", "selective_scan"} <= set(calls), calls
count = len(calls)
adder.compat.uninstall()
assert all(torch.equal(x, y) for x, y in zip(results().values(), own.values())) and len(calls) == count
""", package_folder(), tmp_path / "a.pt", falcon, DEVICE)
    run(TRANSFORMERS.replace("import adder.compat", "import adder.compat\nadder.compat.install()") + """
torch.save({"imported": results()}, sys.argv[2])
""", package_folder(), tmp_path / "b.pt", falcon, DEVICE)
    found = torch.load(tmp_path / "a.pt") | torch.load(tmp_path / "b.pt")
    for which in ("patched", "imported"):
        for name, wanted in found["own"].items():
            got = found[which][name]
            if name.endswith("tokens"):
                assert torch.equal(got, wanted), f"{which}: {name}"
            else:
                close(got, wanted.double(), torch.float32, f"{which}: {name}")
