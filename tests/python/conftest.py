import os

import torch


def pytest_configure(config):
    torch.ops.load_library(os.environ["ADDER_OPS_LIBRARY"])
    torch.set_num_threads(1)  # thousands of tiny calls
