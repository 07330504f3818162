import os
import pathlib
import sys

import torch

ROOT = pathlib.Path(__file__).parents[2]
BUILT = ROOT / "build/release/lib/libadder_ops.so"


def pytest_configure(config):
    torch.ops.load_library(os.environ.setdefault("ADDER_OPS_LIBRARY", str(BUILT)))
    torch.set_num_threads(1)  # thousands of tiny calls
    sys.path.insert(0, str(ROOT / "python"))
