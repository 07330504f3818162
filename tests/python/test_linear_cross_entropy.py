import pytest
import torch

from checks import gradcheck, name_of, on, one_graph, opcheck, pairwise, refuses_forward_mode

loss = torch.ops.adder.linear_cross_entropy

OPTIONS = {
    "rows": (0, 1, 5),
    "D": (1, 4),
    "V": (1, 2, 9),
    "padding": (0, 3),
    "ignore": (None, "some", "all"),
    "ignore_index": (-100, 0),
}


def make(rows=5, D=4, V=9, padding=0, ignore="some", ignore_index=-100, dtype=torch.float64, weight_dtype=None):
    """The arguments of one loss, as a dict; `padding` rows of weight lie beyond the vocabulary V."""
    rng = torch.Generator().manual_seed(rows + 10 * D + 100 * V)

    def real(*shape, type=dtype):
        return torch.randn(*shape, generator=rng, dtype=torch.float64).to(type)

    target = torch.randint(V, (rows,), generator=rng)
    if ignore == "some":
        target[::3] = ignore_index
    if ignore == "all":
        target.fill_(ignore_index)
    return {"x": real(rows, D), "weight": real(V + padding, D, type=weight_dtype or dtype), "target": target,
            "ignore_index": ignore_index, "vocab": V if padding else -1}


@pytest.mark.parametrize("row", pairwise(OPTIONS), ids=name_of)
def test_gradcheck(row, device):
    gradcheck(lambda **arguments: loss(**arguments)[0], on(device, make(**row)))


REPRESENTATIVE = {
    "base": {},
    "float32": dict(dtype=torch.float32),
    "bfloat16": dict(dtype=torch.bfloat16),
    "float32_weight": dict(dtype=torch.bfloat16, weight_dtype=torch.float32),
    "padded": dict(padding=3),
    "nothing_counts": dict(ignore="all"),
    "empty": dict(rows=0),
}


@pytest.mark.parametrize("name", REPRESENTATIVE)
def test_opcheck(name, device):
    opcheck(loss, on(device, make(**REPRESENTATIVE[name])))


@pytest.mark.parametrize("name", ("base", "padded", "float32_weight"))
def test_one_graph_for_all_lengths(name, device):
    one_graph(loss, [on(device, make(**{**REPRESENTATIVE[name], "rows": rows})) for rows in (5, 7, 66)])


@pytest.mark.parametrize("name", ("x", "weight"))
def test_forward_mode_is_refused(name, device):
    refuses_forward_mode(loss, on(device, make()), name)
