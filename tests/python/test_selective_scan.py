import pytest
import torch

from checks import gradcheck, name_of, on, one_graph, opcheck, pairwise, refuses_forward_mode, steps_side_by_side

scan = torch.ops.adder.selective_scan

OPTIONS = {
    "complex": (False, True),
    "discretization": ("euler", "zoh"),
    "B": ("step", "constant"),
    "C": ("step", "constant"),
    "groups": (1, 2),
    "state": (False, True),
    "mask": (False, True),
    "packed": (False, True),
    "reverse": (False, True),
    "gate": (False, True),
    "skip": (False, True),
    "bias": (False, True),
    "softplus": (False, True),
    "L": (0, 1, 2, 5, 66),
}


def make(complex=False, discretization="euler", B="step", C="step", groups=1, state=True, mask=False, packed=False,
         reverse=False, gate=True, skip=True, bias=True, softplus=True, L=5, D=4, N=2, batch=2, delta_scale=1.0,
         dtype=torch.float64):
    """The arguments of one scan, as a dict."""
    rng = torch.Generator().manual_seed(L + 100 * D + 10 * N)
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    batch = 1 if packed else batch

    def real(*shape, type=accumulator):
        return torch.randn(*shape, generator=rng, dtype=torch.float64).to(type)

    def number(*shape):
        return torch.complex(real(*shape), real(*shape)) if complex else real(*shape)

    out = {"u": real(batch, L, D, type=dtype), "delta": real(batch, L, D, type=dtype) * delta_scale,
           "A": number(D, N), "discretization": discretization, "reverse": reverse, "delta_softplus": softplus}
    if not softplus:
        out["delta"] = out["delta"].abs() / 4
    decay = out["A"].real if complex else out["A"]
    decay.copy_(-decay.abs() - 0.1)
    for name, kind in (("B", B), ("C", C)):
        shape = (batch, L, groups, 2 * N if complex else N)
        out[name] = real(*shape, type=dtype) if kind == "step" else number(D, N)
    if packed:
        out["cu_seqlens"] = torch.tensor([0, L // 3, L // 3, L])
    if state:
        out["initial_state"] = number(3 if packed else batch, D, N)
    if mask:
        out["mask"] = torch.rand(batch, L, generator=rng) < 0.7
    if gate:
        out["z"] = real(batch, L, D, type=dtype)
    if skip:
        out["D"] = real(D)
    if bias:
        out["delta_bias"] = real(D) / 2
    return out


@pytest.mark.parametrize("row", pairwise(OPTIONS), ids=name_of)
def test_gradcheck(row, device):
    # Two chunks of 64 steps; few numbers keep it fast.
    size = dict(N=1, batch=1) if row["L"] == 66 else {}
    gradcheck(scan, on(device, make(**row, **size)))


@pytest.mark.parametrize("complex", (False, True))
@pytest.mark.parametrize("scale", (1e-2, 1e-4, 1e-6, 1e-8))
def test_gradcheck_zoh_near_zero(complex, scale, device):
    small = make(complex=complex, discretization="zoh", softplus=False, bias=False, delta_scale=scale)
    gradcheck(scan, on(device, small))


@pytest.mark.parametrize("discretization", ("euler", "zoh"))
@pytest.mark.parametrize("complex", (False, True))
@pytest.mark.parametrize("shape", ((1, 1, 1), (1, 1, 4), (1, 5, 1)))
def test_gradcheck_broadcast_delta(complex, discretization, shape, device):
    arguments = on(device, make(complex=complex, discretization=discretization))
    delta = torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    arguments["delta"] = delta.to(device)

    def broadcast(delta, **rest):
        return scan(delta=delta.expand(rest["u"].shape), **rest)

    gradcheck(broadcast, arguments)


@pytest.mark.parametrize("name", ("mask", "packed", "reverse", "B", "C"))
@pytest.mark.parametrize("scale", (1e-4, 1e-8))
def test_gradcheck_zoh_near_zero_with(name, scale, device):
    change = {name: "constant" if name in "BC" else True}
    gradcheck(scan, on(device, make(**change, discretization="zoh", softplus=False, bias=False, delta_scale=scale)))


@pytest.mark.parametrize("complex", (False, True))
def test_zoh_at_zero_delta_is_exact(complex, device):
    arguments = on(device, make(complex=complex, discretization="zoh", softplus=False, bias=False))
    arguments["delta"] = torch.zeros_like(arguments["delta"])
    gradcheck(scan, arguments)
    assert torch.equal(scan(**arguments)[1], arguments["initial_state"])


REPRESENTATIVE = {
    "base": {},
    "float32": dict(dtype=torch.float32),
    "bfloat16": dict(dtype=torch.bfloat16),
    "plain": dict(state=False, gate=False, skip=False, bias=False, softplus=False),
    "complex": dict(complex=True, discretization="zoh"),
    "constant": dict(B="constant", C="constant"),
    "complex_constant": dict(complex=True, B="constant", C="constant"),
    "packed": dict(packed=True, L=7),
    "mask_reverse": dict(mask=True, reverse=True),
    "groups": dict(groups=2),
    "empty": dict(L=0),
    "two_chunks": dict(L=66),
}


@pytest.mark.parametrize("name", REPRESENTATIVE)
def test_opcheck(name, device):
    opcheck(scan, on(device, make(**REPRESENTATIVE[name])))


@pytest.mark.parametrize("name", ("base", "complex", "constant", "packed", "mask_reverse"))
def test_one_graph_for_all_lengths(name, device):
    one_graph(scan, [on(device, make(**{**REPRESENTATIVE[name], "L": L})) for L in (5, 7, 66, 130)])


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_steps_side_by_side(dtype, device):
    arguments = [steps_side_by_side(on(device, make(L=L, dtype=dtype))) for L in (64, 66, 130)]
    opcheck(scan, arguments[0])
    one_graph(scan, arguments)


@pytest.mark.parametrize("name", ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state"))
def test_forward_mode_is_refused(name, device):
    refuses_forward_mode(scan, on(device, make()), name)
