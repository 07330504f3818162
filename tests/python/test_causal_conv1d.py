import pytest
import torch

from checks import gradcheck, name_of, on, one_graph, opcheck, pairwise, refuses_forward_mode, steps_side_by_side

conv = torch.ops.adder.causal_conv1d

OPTIONS = {
    "width": (1, 2, 3, 4, 7),
    "bias": (False, True),
    "activation": ("none", "silu"),
    "window": (False, True),
    "mask": (False, True),
    "packed": (False, True),
    "reverse": (False, True),
    "L": (0, 1, 2, 5, 20),
}


def make(width=4, bias=True, activation="silu", window=True, mask=False, packed=False, reverse=False, L=5, D=3,
         batch=2, dtype=torch.float64):
    """The arguments of one convolution, as a dict."""
    rng = torch.Generator().manual_seed(L + 100 * D + 10 * width)
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    batch = 1 if packed else batch

    def real(*shape, type=accumulator):
        return torch.randn(*shape, generator=rng, dtype=torch.float64).to(type)

    out = {"x": real(batch, L, D, type=dtype), "weight": real(D, width), "activation": activation, "reverse": reverse}
    if packed:
        out["cu_seqlens"] = torch.tensor([0, L // 3, L // 3, L])
    if bias:
        out["bias"] = real(D)
    if window:
        out["initial_window"] = real(3 if packed else batch, width - 1, D)
    if mask:
        out["mask"] = torch.rand(batch, L, generator=rng) < 0.7
    return out


@pytest.mark.parametrize("row", pairwise(OPTIONS), ids=name_of)
def test_gradcheck(row, device):
    gradcheck(conv, on(device, make(**row)))


REPRESENTATIVE = {
    "base": {},
    "float32": dict(dtype=torch.float32),
    "bfloat16": dict(dtype=torch.bfloat16),
    "plain": dict(bias=False, window=False, activation="none"),
    "width1": dict(width=1),
    "packed": dict(packed=True, L=7),
    "mask_reverse": dict(mask=True, reverse=True),
    "shorter_than_the_window": dict(L=2),
    "empty": dict(L=0),
}


@pytest.mark.parametrize("name", REPRESENTATIVE)
def test_opcheck(name, device):
    opcheck(conv, on(device, make(**REPRESENTATIVE[name])))


@pytest.mark.parametrize("name", ("base", "plain", "packed", "mask_reverse"))
def test_one_graph_for_all_lengths(name, device):
    one_graph(conv, [on(device, make(**{**REPRESENTATIVE[name], "L": L})) for L in (5, 7, 66, 130)])


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_steps_side_by_side(dtype, device):
    arguments = [steps_side_by_side(on(device, make(L=L, dtype=dtype))) for L in (64, 66, 130)]
    opcheck(conv, arguments[0])
    one_graph(conv, arguments)


@pytest.mark.parametrize("name", ("x", "weight", "initial_window"))
def test_forward_mode_is_refused(name, device):
    refuses_forward_mode(conv, on(device, make()), name)
