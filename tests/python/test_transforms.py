"""torch.func's transforms: each gives what plain autograd gives, or is refused by name."""

import pytest
import torch
from torch.func import functional_call, grad, hessian, jacrev, jvp, stack_module_state, vjp, vmap

import adder
import test_add_norm
import test_causal_conv1d
import test_linear_cross_entropy
import test_selective_scan
import test_small_linear
from checks import leaves, on

CASES = {
    "selective_scan": (test_selective_scan, {}),
    "selective_scan complex": (test_selective_scan, dict(complex=True, discretization="zoh", packed=True)),
    "selective_scan constant": (test_selective_scan, dict(B="constant", C="constant", mask=True)),
    "causal_conv1d": (test_causal_conv1d, {}),
    "causal_conv1d packed": (test_causal_conv1d, dict(packed=True)),
    "add_norm": (test_add_norm, {}),
    "add_norm layer": (test_add_norm, dict(kind="layer")),
    "linear_cross_entropy": (test_linear_cross_entropy, {}),
    "small_linear": (test_small_linear, {}),
}
DIFFERENTIABLE = [name for name in CASES if "linear_cross" not in name]


def case(name, device):
    """The operator as a function of its tensors that have gradients, those tensors, and one real number of it all."""
    module, choices = CASES[name]
    op = getattr(torch.ops.adder, name.split()[0])
    arguments = on(device, module.make(**choices))
    names = list(leaves(arguments))

    def outputs(*tensors):
        out = op(**{**arguments, **dict(zip(names, tensors))})
        out = (out[0],) if "cross_entropy" in name else out if isinstance(out, tuple) else (out,)
        return tuple(torch.view_as_real(x) if x.is_complex() else x for x in out)

    def number(*tensors):
        return sum((x.sin() * torch.arange(1, 1 + x.numel(), device=device).view(x.shape)).sum()
                   for x in outputs(*tensors))

    return outputs, tuple(arguments[n] for n in names), number


def autograd(number, tensors):
    tensors = [t.detach().requires_grad_() for t in tensors]
    return torch.autograd.grad(number(*tensors), tensors)


def close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_grad_and_vjp(name, device):
    outputs, tensors, number = case(name, device)
    wanted = autograd(number, tensors)
    assert all(x.abs().sum() > 0 for x in wanted)
    close(grad(number, argnums=tuple(range(len(tensors))))(*tensors), wanted)
    value, pull = vjp(number, *tensors)
    close(pull(torch.ones_like(value)), wanted)


@pytest.mark.parametrize("name", CASES)
def test_vmap_of_each_argument_and_of_its_gradient(name, device):
    outputs, tensors, number = case(name, device)
    for place, tensor in enumerate(tensors):
        several = torch.stack([tensor, tensor * 0.5, tensor * 1.5], dim=-1)
        dims = tuple(-1 if i == place else None for i in range(len(tensors)))
        each = [tuple(t if i != place else several[..., k] for i, t in enumerate(tensors)) for k in range(3)]
        given = [several if i == place else t for i, t in enumerate(tensors)]
        close(vmap(outputs, dims)(*given), tuple(map(torch.stack, zip(*(outputs(*one) for one in each)))))
        close(vmap(grad(number, argnums=place), dims)(*given),
              torch.stack([autograd(number, one)[place] for one in each]))


def test_plain_autograd_goes_through_vmap(device):
    outputs, tensors, number = case("selective_scan", device)
    several = torch.stack([tensors[0], tensors[0] * 0.5]).requires_grad_()
    got, = torch.autograd.grad(vmap(lambda u: number(u, *tensors[1:]))(several).sum(), several)
    close(got, torch.stack([autograd(number, (u, *tensors[1:]))[0] for u in several]))


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_jacrev(name, device):
    outputs, tensors, _ = case(name, device)
    first = lambda x: outputs(x, *tensors[1:])[0]
    close(jacrev(first)(tensors[0]), torch.autograd.functional.jacobian(first, tensors[0]))


@pytest.mark.parametrize("name", CASES)
def test_forward_mode_is_refused(name, device):
    outputs, tensors, number = case(name, device)
    message = f"^{name.split()[0]}: has no forward-mode derivative .*; vjp and jacrev have the derivative"
    with pytest.raises(NotImplementedError, match=message):
        jvp(number, tensors, tensors)
    with pytest.raises(NotImplementedError, match=message):
        hessian(lambda x: number(x, *tensors[1:]))(tensors[0])


@pytest.mark.parametrize("name", [name for name in CASES if name != "small_linear"])
def test_second_derivatives_are_refused(name, device):
    outputs, tensors, number = case(name, device)
    message = f"^{name.split()[0]}: has no second derivative"
    for inner in range(len(tensors)):  # also of one argument by another
        for outer in {0, len(tensors) - 1}:

            def of_outer(x):
                with_x = [x if i == outer else t for i, t in enumerate(tensors)]
                return grad(number, argnums=inner)(*with_x).abs().sum()

            with pytest.raises(NotImplementedError, match=message):
                grad(of_outer)(tensors[outer])
    x = tensors[0].detach().requires_grad_()
    first, = torch.autograd.grad(number(x, *tensors[1:]), x, create_graph=True)
    close(first.detach(), autograd(number, tensors)[0])
    with pytest.raises(NotImplementedError, match=message):
        first.sum().backward()


def test_a_gradient_that_comes_in_may_depend_on_more(device):
    """The loss's gradient is linear in what comes in: no part of that gets lost."""
    double = {"dtype": torch.float64, "device": device}
    x, weight = torch.randn(5, 8, **double), torch.randn(11, 8, **double)
    target = torch.randint(11, (5, ), device=device)

    def plain(x):
        return torch.nn.functional.cross_entropy(x @ weight.T, target)

    def fused(x):
        return torch.ops.adder.linear_cross_entropy(x, weight, target)[0]

    factor = torch.tensor(2.0, **double)
    close(*(grad(lambda a: grad(lambda x: a * loss(x))(x).abs().sum())(factor) for loss in (fused, plain)))
    factor.requires_grad_()
    x.requires_grad_()
    twice = []
    for loss in (fused, plain):
        first, = torch.autograd.grad(factor * loss(x), x, create_graph=True)
        twice.append(torch.autograd.grad(first.abs().sum(), factor)[0])
    close(*twice)


def test_small_linear_has_second_derivatives(device):
    outputs, tensors, number = case("small_linear", device)

    def plain(x, weight, bias):
        y = torch.nn.functional.linear(x, weight, bias)
        return (y.sin() * torch.arange(1, 1 + y.numel(), device=device).view(y.shape)).sum()

    for inner in range(3):
        for outer in range(3):
            twice = [grad(lambda *t: grad(f, argnums=inner)(*t).square().sum(), argnums=outer) for f in (number, plain)]
            close(twice[0](*tensors), twice[1](*tensors))


@pytest.mark.parametrize("name", CASES)
def test_a_gradient_within_a_transform_that_does_not_go_through_it(name, device):
    outputs, tensors, number = case(name, device)
    wanted = autograd(number, tensors)[0]
    factor = torch.ones_like(tensors[0])
    got = grad(lambda w: (w * grad(number)(*tensors)).abs().sum())(factor)
    close(got, wanted.abs().to(got.dtype))


def test_sum_of_squares_is_refused(device):
    x = torch.ones(3, device=device)
    f = lambda x: adder.ops.sum_of_squares([x])
    assert f(x) == 3
    with pytest.raises(NotImplementedError, match="^sum_of_squares: has no derivative; call it under torch.no_grad"):
        grad(f)(x)
    with pytest.raises(NotImplementedError, match="^sum_of_squares: has no derivative; call it under torch.no_grad"):
        f(x.clone().requires_grad_())
    with pytest.raises(NotImplementedError, match="^sum_of_squares: has no forward-mode derivative"):
        jvp(f, (x,), (x,))
    with pytest.raises(RuntimeError, match="adder::sum_of_squares"):
        vmap(f)(x.expand(2, 3))


# Modules


def test_functional_call_of_an_ensemble_of_blocks(device):
    torch.manual_seed(0)
    blocks = [adder.Mamba(8, d_state=4).to(device, torch.float64) for _ in range(3)]
    x = torch.randn(2, 5, 8, dtype=torch.float64, device=device)
    parameters, buffers = stack_module_state(blocks)
    call = lambda p, b, x: functional_call(blocks[0], (p, b), (x,))[0]
    close(vmap(call, (0, 0, None))(parameters, buffers, x), torch.stack([block(x)[0] for block in blocks]))


def test_gradients_of_each_sample_of_a_model(device):
    torch.manual_seed(0)
    model = adder.MambaLM(d_model=8, n_layer=2, vocab_size=11).to(device, torch.float64)
    ids, targets = torch.randint(11, (2, 3, 6), device=device)
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    class Loss(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, ids, targets):
            return self.model.loss(ids, targets).mean

    def loss(parameters, ids, targets):
        named = {f"model.{name}": p for name, p in parameters.items()}
        return functional_call(Loss(), named, (ids.unsqueeze(0), targets.unsqueeze(0)))

    got = vmap(grad(loss), (None, 0, 0))(parameters, ids, targets)
    for k in range(3):
        wanted = torch.autograd.grad(model.loss(ids[k:k + 1], targets[k:k + 1]).mean, list(model.parameters()))
        close([got[name][k] for name in parameters], list(wanted))
