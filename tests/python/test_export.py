"""torch.export with a length that is not fixed: one program gives the eager results at other lengths."""

import io

import pytest
import torch
from torch.export import Dim, export

import adder
from test_causal_conv1d import make as make_convolution
from test_selective_scan import make as make_scan
from checks import on, steps_side_by_side

LENGTHS = (2, 3, 5, 66, 130)


class Call(torch.nn.Module):
    """An operator with what is not a tensor fixed."""

    def __init__(self, op, fixed):
        super().__init__()
        self.op, self.fixed = op, fixed

    def forward(self, tensors):
        return self.op(**tensors, **self.fixed)


def same(got, want):
    got, want = (torch.utils._pytree.tree_leaves(x) for x in (got, want))
    for x, y in zip(got, want, strict=True):
        torch.testing.assert_close(x, y)  # not to the bit: eagerly, few rows go through small_linear


def check(module, inputs, dynamic, graph_has):
    """inputs of each length, of which the first is exported."""
    program = export(module, inputs[0], dynamic_shapes=dynamic)
    targets = [str(node.target) for node in program.graph.nodes]
    for name, count in graph_has.items():
        assert targets.count(f"adder.{name}.default") == count, targets
    saved = io.BytesIO()
    torch.export.save(program, saved)
    saved.seek(0)
    again = torch.export.load(saved)
    with torch.no_grad():
        for given in inputs:
            wanted = module(*given)
            same(program.module()(*given), wanted)
            same(again.module()(*given), wanted)


@pytest.mark.parametrize("choices", ({}, dict(mask=True, reverse=True), dict(complex=True), dict(B="constant")),
                         ids=("base", "mask_reverse", "complex", "constant"))
def test_selective_scan(choices, device):
    check_operator(torch.ops.adder.selective_scan, make_scan, choices, device)


@pytest.mark.parametrize("op,make", ((torch.ops.adder.selective_scan, make_scan),
                                     (torch.ops.adder.causal_conv1d, make_convolution)))
def test_steps_side_by_side(op, make, device):
    check_operator(op, lambda **choices: steps_side_by_side(make(**choices)), {}, device)


@pytest.mark.parametrize("choices", ({}, dict(mask=True, reverse=True)), ids=("base", "mask_reverse"))
def test_causal_conv1d(choices, device):
    check_operator(torch.ops.adder.causal_conv1d, make_convolution, choices, device)


def check_operator(op, make, choices, device):
    arguments = [on(device, make(**choices, L=L, dtype=torch.float32)) for L in (7, *LENGTHS)]
    inputs = [({name: x for name, x in a.items() if isinstance(x, torch.Tensor)}, ) for a in arguments]
    fixed = {name: x for name, x in arguments[0].items() if not isinstance(x, torch.Tensor)}
    length = Dim("length")
    dynamic = {name: {1: length} if x.shape[:2] == (2, 7) else None for name, x in inputs[0][0].items()}
    assert sum(shape is not None for shape in dynamic.values()) >= 1
    check(Call(op, fixed), inputs, (dynamic, ), {op._qualified_op_name.split("::")[1]: 1})


def test_block(device):
    torch.manual_seed(0)
    block = adder.Mamba(16, d_state=4).to(device).eval()
    state = adder.MambaState(torch.randn(2, 3, 32, device=device), torch.randn(2, 32, 4, device=device))
    inputs = [(torch.randn(2, L, 16, device=device), state) for L in (7, *LENGTHS)]
    check(block, inputs, ({1: Dim("length")}, adder.MambaState(None, None)), {"selective_scan": 1, "causal_conv1d": 1})


def test_model(device):
    torch.manual_seed(0)
    model = adder.MambaLM(d_model=16, n_layer=2, vocab_size=21).to(device).eval()
    inputs = [(torch.randint(21, (2, L), device=device), ) for L in (7, *LENGTHS)]
    operators = {"selective_scan": 2, "causal_conv1d": 2, "add_norm": 3}
    check(model, inputs, ({1: Dim("length")}, ), operators)
    # Batch too, and the state before.
    inputs = [(ids[:rows].contiguous(), model(ids[:rows])[1]) for (ids, ), rows in zip(inputs, (2, 2, 2, 2, 2, 2))]
    state = adder.LMState(tuple(adder.MambaState({0: Dim("batch")}, {0: Dim("batch")}) for _ in range(2)))
    check(model, inputs, ({0: Dim("batch"), 1: Dim("length")}, state), operators)
