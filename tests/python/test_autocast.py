"""torch.autocast: what each operator makes of its inputs, and that results are those of the same call made by hand."""

import pytest
import torch

import adder
from checks import leaves, on
from test_add_norm import make as make_norm
from test_causal_conv1d import make as make_convolution
from test_linear_cross_entropy import make as make_loss
from test_selective_scan import make as make_scan
from test_small_linear import make as make_linear

HALF = torch.bfloat16


def check(op, given, by_hand, device):
    """op of given under autocast has the outputs, types and gradients of op of by_hand without; gradients come in the
    types of what was given."""
    given, by_hand = on(device, given), on(device, by_hand)
    inputs, wanted_inputs = leaves(given), leaves(by_hand)
    with torch.autocast(device, dtype=HALF):
        got = op(**{**given, **inputs})
    wanted = op(**{**by_hand, **wanted_inputs})
    pairs = [(x, y) for x, y in zip(*((o if isinstance(o, tuple) else (o, ) for o in (got, wanted))), strict=True)]
    for x, y in pairs:
        assert x.dtype == y.dtype and torch.equal(x, y)
    recorded = [(x, y) for x, y in pairs if y.requires_grad]
    gradients = [torch.autograd.grad([pair[side].abs().float().sum() for pair in recorded], list(of.values()))
                 for side, of in ((0, inputs), (1, wanted_inputs))]
    for name, x, y in zip(inputs, *gradients, strict=True):
        assert x.dtype == given[name].dtype and torch.equal(x, y.to(x.dtype)), name
    return got


def cast(arguments, names, dtype):
    return {name: x.to(dtype) if name in names else x for name, x in arguments.items()}


ACTIVATIONS = ("u", "delta", "z", "B", "C")


@pytest.mark.parametrize("choices", ({}, dict(B="constant"), dict(complex=True)), ids=("base", "constant", "complex"))
def test_selective_scan(choices, device):
    float32 = make_scan(**choices, dtype=torch.float32)
    activations = [name for name in ACTIVATIONS if float32[name].dim() >= 3]
    half = cast(float32, activations, HALF)
    # In one type there is nothing to bring together.
    y, state = check(adder.ops.selective_scan, half, half, device)
    assert y.dtype == HALF and state.dtype == float32["A"].dtype
    y, state = check(adder.ops.selective_scan, float32, float32, device)
    assert y.dtype == torch.float32
    # One float32 activation makes all of them so: none loses digits.
    for name in activations:
        mixed = {**half, name: float32[name]}
        y, state = check(adder.ops.selective_scan, mixed, cast(mixed, activations, torch.float32), device)
        assert y.dtype == torch.float32


def test_parameters_and_states_are_float32(device):
    arguments = cast(make_scan(dtype=torch.float32), ACTIVATIONS, HALF)
    rest = [name for name, x in arguments.items() if isinstance(x, torch.Tensor) and name not in ACTIVATIONS]
    assert set(rest) == {"A", "D", "delta_bias", "initial_state"}
    narrow = cast(arguments, rest, HALF)
    _, state = check(adder.ops.selective_scan, narrow, cast(narrow, rest, torch.float32), device)
    assert state.dtype == torch.float32
    with pytest.raises(ValueError, match="selective_scan: A must have dtype Float, got BFloat16"):
        adder.ops.selective_scan(**on(device, narrow))

    arguments = make_convolution(dtype=HALF)
    rest = ("weight", "bias", "initial_window")
    narrow = cast(arguments, rest, HALF)
    y, window = check(adder.ops.causal_conv1d, narrow, cast(narrow, rest, torch.float32), device)
    assert y.dtype == HALF and window.dtype == torch.float32

    arguments = make_norm(dtype=HALF)
    narrow = cast(arguments, ("residual", ), HALF)
    y, residual = check(adder.ops.add_norm, narrow, cast(narrow, ("residual", ), torch.float32), device)
    assert y.dtype == HALF and residual.dtype == torch.float32


def test_products_are_made_in_autocasts_type(device):
    float32 = make_loss(dtype=torch.float32)
    half = cast(float32, ("x", ), HALF)
    loss, each, _ = check(adder.ops.linear_cross_entropy, float32, half, device)  # the weight's gradient stays exact
    assert loss.dtype == each.dtype == torch.float32
    check(adder.ops.linear_cross_entropy, half, half, device)

    float32 = make_linear(dtype=torch.float32)
    y = check(adder.ops.small_linear, float32, cast(float32, ("x", "weight"), HALF), device)
    assert y.dtype == HALF


@pytest.mark.parametrize("op,make", ((adder.ops.selective_scan, make_scan), (adder.ops.causal_conv1d, make_convolution),
                                     (adder.ops.add_norm, make_norm), (adder.ops.linear_cross_entropy, make_loss),
                                     (adder.ops.small_linear, make_linear)), ids=lambda x: getattr(x, "__name__", ""))
def test_float64_stays(op, make, device):
    check(op, make(), make(), device)


@pytest.mark.parametrize("choices", ({}, dict(complex=True), dict(inner_norm="rms"),
                                     dict(selective_B=False, selective_C=False, dt_rank="none")),
                         ids=("base", "complex", "falcon", "constant"))
def test_modules(choices, device):
    """Activations bfloat16; parameters, their gradients and states float32; near the float32 results."""
    torch.manual_seed(0)
    model = adder.MambaLM(d_model=32, n_layer=2, vocab_size=21, mixer=adder.MambaOptions(**choices)).to(device)
    ids, targets = torch.randint(21, (2, 2, 40), device=device)
    seen = []
    model.backbone.layers[0].mixer.register_forward_hook(lambda module, given, out: seen.append(out))
    wanted = model.loss(ids, targets)
    wanted_gradients = torch.autograd.grad(wanted.mean, list(model.parameters()))
    with torch.autocast(device, dtype=HALF):
        got = model.loss(ids, targets)
        logits, _ = model(ids)
    (y, _), (half_y, state) = seen[:2]
    assert y.dtype == torch.float32 and half_y.dtype == logits.dtype == HALF
    assert state.conv.dtype == torch.float32 and state.ssm.dtype in (torch.float32, torch.complex64)
    assert 0 < (half_y.float() - y).norm() / y.norm() < 0.02
    assert got.mean.dtype == torch.float32 and abs(got.mean - wanted.mean) < 2e-3
    for name, parameter, want in zip(dict(model.named_parameters()), model.parameters(), wanted_gradients):
        x, = torch.autograd.grad(got.mean, parameter, retain_graph=True)
        assert x.dtype == torch.float32 and (x - want).norm() <= 0.05 * want.norm(), name
