"""Functions and modules of the Python package against plain torch operations."""

import pytest
import torch
from torch.nn import functional

import adder


def test_functions_have_the_schemas_of_the_operators():
    import inspect

    for name in ("selective_scan", "causal_conv1d", "add_norm", "linear_cross_entropy", "small_linear"):
        schema = getattr(torch.ops.adder, name).default._schema
        parameters = inspect.signature(getattr(adder.ops, name)).parameters
        assert [a.name for a in schema.arguments] == list(parameters), name
        for argument in schema.arguments:
            if argument.has_default_value():
                assert parameters[argument.name].default == argument.default_value, f"{name}: {argument.name}"


def test_operators(device):
    rng = torch.Generator().manual_seed(0)

    def values(*shape):
        return torch.randn(*shape, generator=rng, dtype=torch.float64).to(device)

    u, delta, z, A, B, C, D = (values(*s)
                               for s in ((2, 5, 3), (2, 5, 3), (2, 5, 3), (3, 4), (2, 5, 1, 4), (2, 5, 1, 4), (3, )))
    A = -A.abs()
    y, h = adder.ops.selective_scan(u, delta, A, B, C, D=D, z=z, delta_softplus=True)
    state = torch.zeros(2, 3, 4, dtype=torch.float64, device=device)
    for t in range(5):
        step = functional.softplus(delta[:, t, :, None])
        state = torch.exp(step * A) * state + step * B[:, t] * u[:, t, :, None]
        wanted = ((state * C[:, t]).sum(-1) + D * u[:, t]) * functional.silu(z[:, t])
        torch.testing.assert_close(y[:, t], wanted)
    torch.testing.assert_close(h, state)

    weight = values(3, 4)
    y, window = adder.ops.causal_conv1d(u, weight, D, activation="silu")
    padded = functional.pad(u, (0, 0, 3, 0))
    wanted = functional.silu(D + sum(weight[:, k] * padded[:, k:k + 5] for k in range(4)))
    torch.testing.assert_close(y, wanted)
    torch.testing.assert_close(window, padded[:, 5:])

    y, r = adder.ops.add_norm(u, delta, D)
    torch.testing.assert_close(y, (u + delta) * torch.rsqrt((u + delta).square().mean(-1, keepdim=True) + 1e-5) * D)
    torch.testing.assert_close(r, u + delta)

    x, head, target = values(6, 3), values(9, 3), torch.tensor([0, 6, -100, 2, 3, 1], device=device)
    loss, each, predictions = adder.ops.linear_cross_entropy(x, head, target, vocab=7)
    logits = (x @ head.T)[:, :7]
    torch.testing.assert_close(loss, functional.cross_entropy(logits, target))
    torch.testing.assert_close(each, functional.cross_entropy(logits, target, reduction="none"))
    assert torch.equal(predictions, logits.argmax(1))
    torch.testing.assert_close(adder.ops.small_linear(x, head, values(9) * 0 + 1), x @ head.T + 1)
    torch.testing.assert_close(adder.ops.sum_of_squares([x, head]), x.square().sum() + head.square().sum())
    with pytest.raises(ValueError,
                       match=r"selective_scan: delta must have shape \(B, L, D\) = \(2, 5, 3\), got \(2, 4, 3\)"):
        adder.ops.selective_scan(u, delta[:, 1:], A, B, C)


CHOICES = {
    "base": {},
    "wide": dict(d_state=5, d_conv=3, expand=3, dt_rank=2, bias=True, conv_bias=False),
    "complex": dict(complex=True, A_init="s4d-lin", discretization="zoh"),
    "random": dict(A_init="random", dt_init="constant"),
    "constant": dict(selective_B=False, selective_C=False, dt_rank="none"),
    "complex constant": dict(complex=True, selective_B=False, selective_C=False),
    "falcon": dict(inner_norm="rms"),
    "one": dict(d_conv=1, d_state=1),
}


def block_reference(block, x):
    """The block in plain operations, step by step."""
    o = block.options
    inner, z = (x @ block.in_proj.weight.T + (block.in_proj.bias if o.bias else 0)).chunk(2, -1)
    length, width = x.shape[1], o.d_conv
    padded = functional.pad(inner, (0, 0, width - 1, 0))
    taps = sum(block.conv1d.weight[:, 0, k] * padded[:, k:k + length] for k in range(width))
    u = functional.silu(taps + (block.conv1d.bias if o.conv_bias else 0))

    def number(values):
        return torch.view_as_complex(values.unflatten(-1, (-1, 2)).contiguous()) if o.complex else values

    def norm(values):
        return values * torch.rsqrt(values.square().mean(-1, keepdim=True) +
                                    o.inner_norm_eps) if o.inner_norm == "rms" else values

    parts = [norm(p) for p in (u @ block.x_proj.weight.T).split(block._parts, -1)] if block._parts else []
    delta = parts.pop(0) @ block.dt_proj.weight.T if block.rank else torch.zeros_like(u)
    delta = functional.softplus(delta + block.dt_proj.bias).unsqueeze(-1)
    constant = [torch.view_as_complex(p) if o.complex else p for p in (block.B, block.C) if p is not None]
    B = number(parts.pop(0)).unsqueeze(2) if o.selective_B else constant.pop(0).expand(*u.shape, -1)
    C = number(parts.pop(0)).unsqueeze(2) if o.selective_C else constant.pop(0).expand(*u.shape, -1)
    A = -torch.exp(block.A_log)
    A = torch.complex(A, block.A_imag) if o.complex else A
    h, out = 0, []
    for t in range(length):
        decay = torch.exp(delta[:, t] * A)
        phi = (decay - 1) / (delta[:, t] * A) if o.discretization == "zoh" else 1
        h = decay * h + phi * delta[:, t] * B[:, t] * u[:, t, :, None]
        y = (C[:, t] * h).sum(-1)
        out.append(((2 * y.real if o.complex else y) + block.D * u[:, t]) * functional.silu(z[:, t]))
    return torch.stack(out, 1) @ block.out_proj.weight.T + (block.out_proj.bias if o.bias else 0)


@pytest.mark.parametrize("name", CHOICES)
def test_block(name, device):
    torch.manual_seed(0)
    block = adder.Mamba(12, **CHOICES[name]).double().to(device)
    x = torch.randn(2, 9, 12, dtype=torch.float64, device=device, requires_grad=True)
    y, state = block(x)
    wanted = block_reference(block, x)
    torch.testing.assert_close(y, wanted, rtol=1e-9, atol=1e-12)
    inputs = [x, *block.parameters()]
    weights = torch.randn_like(y)
    for got, want in zip(torch.autograd.grad((y * weights).sum(), inputs),
                         torch.autograd.grad((wanted * weights).sum(), inputs)):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-11)
    pieces, at = [], None
    for begin, end in ((0, 0), (0, 4), (4, 5), (5, 5), (5, 9)):
        piece, at = block(x[:, begin:end], at)
        pieces.append(piece)
    torch.testing.assert_close(torch.cat(pieces, 1), y, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(at, state, rtol=1e-9, atol=1e-12)


def test_block_initialisation():
    torch.manual_seed(0)
    block = adder.Mamba(64, d_state=4, n_layer=4)
    assert torch.equal(block.A_log,
                       torch.log(torch.arange(1.0, 5)).expand(128, 4)) and torch.equal(block.D, torch.ones(128))
    step = functional.softplus(block.dt_proj.bias)
    assert 0.001 <= step.min() < 0.0015 and 0.07 < step.max() <= 0.1 and 0.0085 < step.log().mean().exp() < 0.0118
    for tensor, bound in ((block.in_proj.weight, 64**-0.5), (block.conv1d.weight, 0.5), (block.conv1d.bias, 0.5),
                          (block.x_proj.weight, 128**-0.5), (block.dt_proj.weight, 0.5), (block.out_proj.weight,
                                                                                          128**-0.5 / 2)):
        assert 0.95 * bound < tensor.abs().max() <= bound and abs(tensor.mean()) < 0.1 * bound
    assert adder.Mamba(64, A_init="s4d-lin", complex=True).A_imag[3].tolist() == list(range(16))


def test_model(device):
    torch.manual_seed(0)
    for tied in (True, False):
        model = adder.MambaLM(d_model=16, n_layer=2, vocab_size=21, tie_embeddings=tied,
                              norm="rms" if tied else "layer").to(device)
        names = set(model.state_dict())
        assert {"backbone.embedding.weight", "backbone.layers.1.mixer.A_log", "backbone.layers.0.norm.weight",
                "backbone.layers.0.mixer.dt_proj.bias", "backbone.norm_f.weight", "lm_head.weight"} <= names
        assert ("lm_head.weight" in dict(model.named_parameters())) == (not tied)
        ids, targets = torch.randint(21, (2, 2, 13), device=device)
        logits, state = model(ids)
        assert logits.shape == (2, 13, 21)
        loss = model.loss(ids, targets)
        torch.testing.assert_close(loss.mean, functional.cross_entropy(logits.flatten(0, 1), targets.flatten()))
        first, middle = model(ids[:, :5])
        second, end = model(ids[:, 5:], middle)
        torch.testing.assert_close(torch.cat([first, second], 1), logits, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(end, state, rtol=1e-4, atol=1e-6)
        packed, states = model(ids.flatten().unsqueeze(0), cu_seqlens=torch.tensor([0, 13, 13, 26]))
        torch.testing.assert_close(packed.view(2, 13, 21), logits, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(states.select(torch.tensor([0, 2], device=device)), state, rtol=1e-4, atol=1e-6)
        mask = torch.ones(2, 15, dtype=torch.bool, device=device)
        mask[:, :2] = False
        padded, _ = model(functional.pad(ids, (2, 0)), mask=mask)
        torch.testing.assert_close(padded[:, 2:], logits, rtol=1e-4, atol=1e-6)
        if device == "cpu":  # a look at a GPU's values would wait for it
            with pytest.raises(ValueError, match=r"MambaLM: ids must lie in \[0, vocab_size\) = \[0, 21\), got 21"):
                model(torch.full((1, 2), 21))
    with torch.device("meta"):
        nowhere = adder.MambaLM(mixer=adder.MambaOptions(complex=True, selective_B=False))
        assert all(p.is_meta for p in nowhere.parameters())


def test_errors_of_options():
    for choices, message in ((dict(d_state=0), "d_state must be a whole number >= 1, got 0"),
                             (dict(dt_rank="all"), "dt_rank must be"), (dict(A_init="x"), "A_init must be one of"),
                             (dict(dt_max=1e-4), "dt_max must not be below dt_min")):
        with pytest.raises(ValueError, match=f"Mamba: {message}"):
            adder.Mamba(8, **choices)
    with pytest.raises(ValueError,
                       match=r"Mamba: x must have shape \(B, L, d_model\) with d_model = 8, got \(1, 2, 9\)"):
        adder.Mamba(8)(torch.zeros(1, 2, 9))
