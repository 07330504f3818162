import pytest
import torch

from checks import gradcheck, name_of, on, one_graph, opcheck, pairwise, refuses_forward_mode

add_norm = torch.ops.adder.add_norm

OPTIONS = {
    "kind": ("rms", "layer"),
    "residual": (False, True),
    "bias": (False, True),
    "eps": (1e-5, 0.5),
    "D": (1, 2, 7, 33),
    "rows": ((), (1,), (0,), (2, 3)),
}


def make(kind="rms", residual=True, bias=True, eps=1e-5, D=7, rows=(2, 3), dtype=torch.float64, out_dtype=None):
    """The arguments of one add_norm, as a dict."""
    rng = torch.Generator().manual_seed(D)
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32

    def real(*shape, type=accumulator):
        return torch.randn(*shape, generator=rng, dtype=torch.float64).to(type)

    return {"x": real(*rows, D, type=dtype), "residual": real(*rows, D) if residual else None, "weight": real(D),
            "bias": real(D) if bias else None, "kind": kind, "eps": eps, "out_dtype": out_dtype}


@pytest.mark.parametrize("row", pairwise(OPTIONS), ids=name_of)
def test_gradcheck(row, device):
    # One value has no variance: its norm is 0 / sqrt(eps), which wants an eps that a finite difference does not see.
    gradcheck(add_norm, on(device, make(**{**row, "eps": 0.5} if row["D"] <= 2 else row)))


REPRESENTATIVE = {
    "base": {},
    "layer": dict(kind="layer"),
    "plain": dict(residual=False, bias=False),
    "float32": dict(dtype=torch.float32),
    "bfloat16": dict(dtype=torch.bfloat16),
    "bfloat16_to_float32": dict(dtype=torch.bfloat16, out_dtype=torch.float32),
    "no_rows": dict(rows=(0,)),
}


@pytest.mark.parametrize("name", REPRESENTATIVE)
def test_opcheck(name, device):
    opcheck(add_norm, on(device, make(**REPRESENTATIVE[name])))


@pytest.mark.parametrize("name", ("base", "layer", "plain", "bfloat16"))
def test_one_graph_for_all_lengths(name, device):
    one_graph(add_norm, [on(device, make(**{**REPRESENTATIVE[name], "rows": (2, L)})) for L in (5, 7, 66)])


@pytest.mark.parametrize("name", ("x", "weight"))
def test_forward_mode_is_refused(name, device):
    refuses_forward_mode(add_norm, on(device, make()), name)
