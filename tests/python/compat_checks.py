"""Functions of adder.compat against references in double."""

import os

import torch

from checks import leaves

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
