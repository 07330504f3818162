"""What tests/peers/reference_sources.py makes of the source of a test, on a source of our own."""

import ast
import pathlib
import sys

import pytest
import torch

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "peers"))
import reference_sources as sources  # noqa: E402

SOURCE = '''
import pytest
import torch


# @pytest.mark.parametrize('itype', [torch.float32, torch.float16])
@pytest.mark.parametrize('itype', [torch.float32])
@pytest.mark.parametrize(
    # "seqlen", [1, 2, 1 + 2]
    "seqlen", [2]
)
@pytest.mark.parametrize("deep", [False, True])
def test_product(deep, seqlen, itype):
    if deep and seqlen == 1:
        pytest.skip()
    device = 'cuda'
    rtol, atol = 1e-3, 1e-4
    x = torch.ones(seqlen, device=device, requires_grad=True)
    w = torch.ones(seqlen, device=device, requires_grad=True)
    b = None
    x_ref = x.detach().clone().requires_grad_()
    w_ref = w.detach().clone().requires_grad_()
    out, out_ref = product_fn(x, w), product_ref(x_ref, w_ref)
    print(f'Output max diff: {(out - out_ref).abs().max().item()}')
    assert torch.allclose(out, out_ref, rtol=rtol, atol=atol)
    out.sum().backward()
    out_ref.sum().backward()
    print(f'dx max diff: {(x.grad - x_ref.grad).abs().max().item()}')
    print(f'dw max diff: {(w.grad - w_ref.grad).abs().max().item()}')

    # assert torch.allclose(x.grad, x_ref.grad,
    #                       rtol=rtol, atol=atol)
    # assert torch.allclose(b.grad, b_ref.grad, rtol=rtol, atol=atol)
    # assert torch.allclose(absent.grad, absent_ref.grad, rtol=rtol, atol=atol)
'''


def product(x, w):
    return x * w


class Changed(torch.autograd.Function):
    """The product with a part of its gradients changed."""

    @staticmethod
    def forward(ctx, x, w, of_x, of_w):
        ctx.save_for_backward(x, w)
        ctx.factors = of_x, of_w
        return x * w

    @staticmethod
    def backward(ctx, g):
        (x, w), (of_x, of_w) = ctx.saved_tensors, ctx.factors
        return g * w * of_x, g * x * of_w, None, None


@pytest.fixture
def tests(tmp_path, monkeypatch):
    (tmp_path / "test_a.py").write_text(SOURCE)
    monkeypatch.setattr(sources, "TESTS", ("test_a.py",))
    return sources.find_tests(tmp_path)


def test_all_values_of_parameters_are_found(tests):
    test = tests["test_product"]
    assert test.parameters == {"deep": [False, True], "seqlen": [1, 2, 3], "itype": [torch.float32, torch.float16]}
    assert test.applies({"deep": False, "seqlen": 1}) and not test.applies({"deep": True, "seqlen": 1})


def run(function, monkeypatch, reference=product, exact_name="product_fn"):
    tree = ast.fix_missing_locations(sources.Recorded().visit(ast.parse(sources.moved(SOURCE, "cpu", 1))))
    module = sources.execute(pathlib.Path("test_a.py"), tree, compare=sources.compare, near=sources.near,
                             product_fn=function, product_ref=reference, print=lambda *_: None)
    monkeypatch.setattr(sources, "_tests", {"test_product": module})
    monkeypatch.setattr(sources, "EXACT", {"product_ref": exact_name})
    monkeypatch.setattr(sources, "_exact", {"product_ref": sources.Exactly(product)})
    return sources.run_case(("test_product", {"deep": False, "seqlen": 2, "itype": torch.float32}))


def test_a_right_function_passes(monkeypatch):
    assert run(product, monkeypatch)["outcome"] == "passed"
    assert [comparison.what for comparison in sources._comparisons] == ["out", "x.grad", "w.grad"]


@pytest.mark.parametrize("function, at", [
    (lambda x, w: x * w * 1.01, "out, x.grad, w.grad"),
    (lambda x, w: Changed.apply(x, w, 1.01, 1), "x.grad"),  # its assertion stands in a comment
    (lambda x, w: Changed.apply(x, w, 1, 1.01), "w.grad"),  # which is only printed
    (lambda x, w: Changed.apply(x, w, 1, float("nan")), "w.grad"),
])
def test_a_wrong_function_fails(function, at, monkeypatch):
    result = run(function, monkeypatch)
    assert (result["outcome"], result["at"]) == ("failed", at)


def test_a_function_that_raises_fails(monkeypatch):
    def wrong(x, w):
        raise ValueError("no product")

    result = run(wrong, monkeypatch)
    assert result["outcome"] == "failed" and "ValueError: no product" in result["why"]


@pytest.mark.parametrize("error, outcome", ((1e-3, "reference's rounding"), (0.5, "failed")))
def test_where_float64_does_not_pass_the_distance_from_it_counts(error, outcome, monkeypatch):
    """The reference is off by 0.1; a function off by less is no failure, one off by more than twice that is."""
    result = run(lambda x, w: x * w + error, monkeypatch, reference=lambda x, w: x * w + 0.1)
    assert result["outcome"] == outcome


def test_without_a_reference_in_float64_nothing_is_excused(monkeypatch):
    result = run(lambda x, w: x * w + 1e-3, monkeypatch, reference=lambda x, w: x * w + 0.1, exact_name="another_fn")
    assert result["outcome"] == "failed"
