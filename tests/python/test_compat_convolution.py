"""adder.compat's convolutions and norms against plain loops in double: values, states, gradients, types, layouts."""

import pytest
import torch

import compat_references as reference
from adder import compat
from checks import name_of, pairwise
from compat_checks import DEVICE, close, compare, there

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
        numbers = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, 2], [0, 1, 1, 1, 1, 1, 1, 1, 3]],
                               dtype=torch.int32)[:, :length]
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
    with pytest.raises(NotImplementedError,
                       match='causal_conv1d_fn: activation must be None, "silu" or "swish", got \'relu\''):
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
    x, weight, bias = torch.randn(2, 3, 8,
                                  generator=rng).to(dtype), torch.randn(8,
                                                                        generator=rng), torch.randn(8, generator=rng)
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
