"""The library as PyTorch sees it."""

import os
import subprocess
import sys

import pytest
import torch

from conftest import built_with_cuda

OPERATORS = sorted(name.split("::")[1].split(".")[0] for name in torch._C._dispatch_get_all_op_names()
                   if name.startswith("adder::"))


@pytest.mark.parametrize(
    "name", ("selective_scan", "causal_conv1d", "add_norm", "linear_cross_entropy", "small_linear", "sum_of_squares"))
def test_is_there(name):
    assert name in OPERATORS


@pytest.mark.parametrize("name", OPERATORS)
def test_has_a_kernel_for_each_device(name):
    def registered(key):
        return torch._C._dispatch_has_kernel_for_dispatch_key(f"adder::{name}", key)

    devices = ["CPU", "Meta", *(["CUDA"] if built_with_cuda() else [])]
    assert registered("CompositeExplicitAutograd") or all(registered(key) for key in devices)
    assert registered("Autograd")


def test_loads_and_runs_without_a_gpu():
    script = """
import os, torch
torch.ops.load_library(os.environ["ADDER_OPS_LIBRARY"])
assert not torch.cuda.is_available()
x = torch.randn(1, 3, 2)
y, state = torch.ops.adder.selective_scan(x, x, -torch.ones(2, 4), torch.randn(1, 3, 1, 4), torch.randn(1, 3, 1, 4))
assert y.shape == (1, 3, 2) and state.shape == (1, 2, 4)
assert not torch.cuda.is_initialized()
"""
    subprocess.run([sys.executable, "-c", script], check=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})


def test_backward_operators_check_their_arguments(device):
    """They are called with what the forward pass kept; from Python anything can come."""
    u = torch.randn(2, 5, 3, device=device)
    A, B = -torch.rand(3, 4, device=device), torch.randn(2, 5, 1, 4, device=device)
    y, state, border = torch.ops.adder._selective_scan_fwd(u, u, A, B, B, save=True)
    scan = lambda dy, dfinal, border: torch.ops.adder._selective_scan_bwd(dy, dfinal, border, u, u, A, B, B)
    assert scan(y, state, border)[0].shape == u.shape
    for arguments, name in (((y[:, 1:], state, border), "dy"), ((y.double(), state, border), "dy"),
                            ((y, state[1:], border), "dfinal_state"), ((y, state.double(), border), "dfinal_state"),
                            ((y, state, border[1:]), "border_states"), ((y, state, border.double()), "border_states"),
                            ((y.to("meta"), state, border), "dy"), ((y, state, border.to("meta")), "border_states")):
        with pytest.raises(ValueError, match=f"selective_scan: {name} must"):
            scan(*arguments)

    weight = torch.randn(3, 4, device=device)
    y, window = torch.ops.adder.causal_conv1d(u, weight)
    conv = lambda dy, dfinal: torch.ops.adder._causal_conv1d_bwd(dy, dfinal, u, weight)
    assert conv(y, window)[0].shape == u.shape
    for arguments in ((y[:, 1:], window), (y.double(), window)):
        with pytest.raises(ValueError, match="causal_conv1d: dy must"):
            conv(*arguments)
    with pytest.raises(ValueError, match="causal_conv1d: dfinal_window must"):
        conv(y, window[1:])

    x, weight = torch.randn(2, 5, 8, device=device), torch.randn(8, device=device)
    y, residual, rstd, mean = torch.ops.adder._add_norm_fwd(x, None, weight, None, kind="layer")
    good = dict(dy=y, dresidual_out=residual, residual_out=residual, weight=weight, rstd=rstd, mean=mean, kind="layer",
                x_dtype=torch.float32, need_dresidual=True, need_dbias=True)
    norm = lambda **change: torch.ops.adder._add_norm_bwd(**{**good, **change})
    assert norm()[0].shape == x.shape
    for name, value in (("dy", y[1:]), ("dresidual_out", residual[1:]), ("dresidual_out", residual.double()),
                        ("rstd", rstd[1:]), ("rstd", rstd.double()), ("mean", mean[1:]), ("mean", mean.double()),
                        ("weight", weight[1:]), ("residual_out", residual.double()), ("residual_out", residual[..., :0]),
                        ("dy", y.to("meta"))):
        with pytest.raises(ValueError, match=f"add_norm: {name} must"):
            norm(**{name: value})
