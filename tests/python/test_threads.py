"""Little work stays on one thread: on a busy machine a step of decoding would wait milliseconds for a second one."""

import os
import subprocess
import sys

from adder import compat

SCRIPT = """
import os, sys
sys.path.insert(0, sys.argv[1])
import torch
from adder import compat

def threads():
    return len(os.listdir("/proc/self/task"))

def step(channels):
    batch = torch.zeros(1, channels)
    with torch.no_grad():
        compat.causal_conv1d_update(batch, torch.zeros(1, channels, 4), torch.zeros(channels, 4), activation="silu")
        compat.selective_state_update(torch.zeros(1, channels, 16), batch, batch, torch.zeros(channels, 16),
                                      torch.zeros(1, 16), torch.zeros(1, 16), z=batch)

torch.set_num_threads(2)
step(1)
before = threads()
step(1536)
assert threads() == before, f"a step of a 130M model began {threads() - before} threads"
step(65536)
assert threads() == before + 1, f"a large step began {threads() - before} threads"
"""


def test_a_decoding_step_of_a_small_model_begins_no_thread():
    folder = compat.__path__[0].removesuffix("/adder/compat")
    out = subprocess.run([sys.executable, "-c", SCRIPT, folder], capture_output=True, text=True,
                         env=os.environ | {"OMP_NUM_THREADS": "2"})
    assert out.returncode == 0, out.stderr[-2000:]
