import os
import pathlib

import torch

BUILT = pathlib.Path(__file__).parents[2] / "build/release/lib/libadder_ops.so"


def pytest_configure(config):
    torch.ops.load_library(os.environ.setdefault("ADDER_OPS_LIBRARY", str(BUILT)))
    torch.set_num_threads(1)  # thousands of tiny calls
