"""The library as PyTorch sees it."""

import os
import subprocess
import sys

import pytest
import torch

OPERATORS = sorted(name.split("::")[1].split(".")[0] for name in torch._C._dispatch_get_all_op_names()
                   if name.startswith("adder::"))


@pytest.mark.parametrize("name", ("selective_scan", "causal_conv1d", "add_norm", "linear_cross_entropy", "small_linear"))
def test_is_there(name):
    assert name in OPERATORS


@pytest.mark.parametrize("name", OPERATORS)
def test_has_a_cpu_and_a_meta_kernel(name):
    def registered(key):
        return torch._C._dispatch_has_kernel_for_dispatch_key(f"adder::{name}", key)

    assert registered("CompositeExplicitAutograd") or (registered("CPU") and registered("Meta"))


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
