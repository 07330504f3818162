import os
import pathlib
import sys

import pytest
import torch

ROOT = pathlib.Path(__file__).parents[2]
BUILT = ROOT / "build/release/lib/libadder_ops.so"


def pytest_configure(config):
    torch.ops.load_library(os.environ.setdefault("ADDER_OPS_LIBRARY", str(BUILT)))
    torch.set_num_threads(1)  # thousands of tiny calls
    sys.path.insert(0, str(ROOT / "python"))
    import adder  # noqa: F401  what it tells PyTorch of the operators


def built_with_cuda():
    return torch._C._dispatch_has_kernel_for_dispatch_key("adder::_selective_scan_fwd", "CUDA")


def cuda_is_there():
    return built_with_cuda() and torch.cuda.is_available()


def cuda_is_required():
    return os.environ.get("ADDER_REQUIRE_CUDA") == "1"


def pytest_generate_tests(metafunc):
    """Tests that take a device run on every one there is; ADDER_TEST_DEVICE=cpu or =cuda leaves the other out."""
    if "device" in metafunc.fixturenames:
        only = os.environ.get("ADDER_TEST_DEVICE")
        there = ["cpu", "cuda"] if cuda_is_there() or cuda_is_required() else ["cpu"]
        metafunc.parametrize("device", [only] if only else there, indirect=True)


@pytest.fixture
def device(request):
    if request.param == "cuda" and not cuda_is_there():
        if cuda_is_required():
            pytest.fail("ADDER_REQUIRE_CUDA=1, but there is no NVIDIA GPU, or no CUDA in this build")
        pytest.skip("no NVIDIA GPU, or no CUDA in this build")
    return request.param
