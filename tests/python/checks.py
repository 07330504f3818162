"""What the tests of all operators do: gradients against finite differences, PyTorch's own checks, one graph for all
lengths."""

import itertools
import random

import torch
import torch._dynamo.testing


def pairwise(options, seed=0):
    """Rows that hold every pair of values of any two options: each is the random row that adds the most pairs."""
    rng = random.Random(seed)
    names = list(options)

    def pairs(row):
        return {((a, row[a]), (b, row[b])) for a, b in itertools.combinations(names, 2)}

    missing = {((a, x), (b, y)) for a, b in itertools.combinations(names, 2) for x in options[a] for y in options[b]}
    rows = []
    while missing:
        candidates = [{name: rng.choice(options[name]) for name in names} for _ in range(40)]
        best = max(candidates, key=lambda row: len(pairs(row) & missing))
        if pairs(best) & missing:
            rows.append(best)
            missing -= pairs(best)
    return rows


def name_of(row):
    return ",".join(f"{name}={value}" for name, value in row.items())


def on(device, arguments):
    """A dict of arguments with its tensors there; cu_seqlens stays on the CPU."""
    return {name: value.to(device) if isinstance(value, torch.Tensor) and name != "cu_seqlens" else value
            for name, value in arguments.items()}


def steps_side_by_side(arguments):
    """The same values, those of (B, L, ...) laid out as (B, ..., L), as other packages have them."""
    first = next(iter(arguments.values())).shape[:2]
    return {name: x.movedim(1, -1).contiguous().movedim(-1, 1)
            if isinstance(x, torch.Tensor) and x.dim() > 2 and x.shape[:2] == first else x
            for name, x in arguments.items()}


def leaves(arguments):
    """The floating point and complex tensors of a dict of arguments, as leaves that want a gradient."""
    return {name: value.detach().requires_grad_() for name, value in arguments.items()
            if isinstance(value, torch.Tensor) and (value.is_floating_point() or value.is_complex())}


def gradcheck(op, arguments):
    """Finite differences in double, with respect to every tensor that can have a gradient."""
    inputs = leaves(arguments)

    def call(*tensors):
        return op(**{**arguments, **dict(zip(inputs, tensors))})

    assert torch.autograd.gradcheck(call, tuple(inputs.values()), eps=1e-6, atol=1e-6, rtol=1e-5)


def opcheck(op, arguments):
    torch.library.opcheck(op, (), arguments)
    torch.library.opcheck(op, (), {**arguments, **leaves(arguments)})


def outputs_and_gradients(function, arguments):
    inputs = leaves(arguments)
    out = function(**{**arguments, **inputs})
    out = out if isinstance(out, (tuple, list)) else (out,)
    loss = sum((x.abs() ** 2).sum().to(torch.float64) for x in out if x.requires_grad)
    return [*out, *torch.autograd.grad(loss, list(inputs.values()))]


def one_graph(op, all_arguments):
    """Compiled once as a whole, the operator gives the eager results and gradients for every set of arguments."""
    torch._dynamo.reset()
    compiler = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda **arguments: op(**arguments), backend=compiler, fullgraph=True, dynamic=True)
    counts = []
    for arguments in all_arguments:
        got = outputs_and_gradients(compiled, arguments)
        for x, y in zip(got, outputs_and_gradients(op, arguments), strict=True):
            assert torch.equal(x, y)
        counts.append(compiler.frame_count)
    # The first call may compile twice: the compiler starts over where an argument is a float.
    assert counts == counts[:1] * len(counts)


def refuses_forward_mode(op, arguments, name):
    """A derivative that gets lost without a word would be a wrong result."""
    with torch.autograd.forward_ad.dual_level():
        x = arguments[name]
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        try:
            op(**{**arguments, name: dual})
        except NotImplementedError as error:
            assert "has no forward-mode derivative" in str(error)
        else:
            raise AssertionError("no error")
