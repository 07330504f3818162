import pytest
import torch

from checks import gradcheck, on, one_graph, opcheck, refuses_forward_mode

linear = torch.ops.adder.small_linear


def make(rows=(3,), I=5, O=7, bias=True, dtype=torch.float64, weight_dtype=None):
    """The arguments of one product, as a dict."""
    rng = torch.Generator().manual_seed(I)

    def real(*shape, type=dtype):
        return torch.randn(*shape, generator=rng, dtype=torch.float64).to(type)

    return {"x": real(*rows, I), "weight": real(O, I, type=weight_dtype or dtype), "bias": real(O) if bias else None}


REPRESENTATIVE = {
    "base": {},
    "one_row": dict(rows=()),
    "no_rows": dict(rows=(0,)),
    "no_bias": dict(bias=False),
    "many_rows": dict(rows=(2, 9)),
    "float32": dict(dtype=torch.float32),
    "bfloat16_weight": dict(dtype=torch.float32, weight_dtype=torch.bfloat16),
}


@pytest.mark.parametrize("name", [name for name in REPRESENTATIVE if "float" not in name])
def test_gradcheck(name, device):
    gradcheck(linear, on(device, make(**REPRESENTATIVE[name])))


@pytest.mark.parametrize("name", REPRESENTATIVE)
def test_opcheck(name, device):
    opcheck(linear, on(device, make(**REPRESENTATIVE[name])))


def test_one_graph_for_all_row_counts(device):
    one_graph(linear, [on(device, make(rows=(rows,))) for rows in (2, 3, 7)])


@pytest.mark.parametrize("name", ("x", "weight"))
def test_forward_mode_is_refused(name, device):
    refuses_forward_mode(linear, on(device, make()), name)
