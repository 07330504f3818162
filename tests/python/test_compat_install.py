"""adder.compat.install(): programs that import mamba_ssm and causal_conv1d, transformers' models."""

import subprocess
import sys

import pytest
import torch

from adder import compat
from compat_checks import DEVICE, close


def run(script, *arguments):
    out = subprocess.run([sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr[-3000:]
    return out.stdout


PRELUDE = """
import pathlib, sys
sys.path.insert(0, sys.argv[1])
import torch
import adder.compat
"""


def package_folder():
    return compat.__path__[0].removesuffix("/adder/compat")


def test_programs_import_the_original_names():
    run(PRELUDE + """
adder.compat.install()
adder.compat.install()
import importlib.util
import causal_conv1d, mamba_ssm
from causal_conv1d import causal_conv1d_fn, causal_conv1d_update
from causal_conv1d.causal_conv1d_interface import causal_conv1d_ref
from causal_conv1d.causal_conv1d_varlen import causal_conv1d_varlen_states
from mamba_ssm import Mamba
from mamba_ssm.modules.mamba_simple import Mamba as Same
from mamba_ssm.ops.selective_scan_interface import mamba_inner_fn, selective_scan_fn, selective_scan_ref
from mamba_ssm.ops.triton.layer_norm import RMSNorm, layer_norm_fn, rms_norm_fn
from mamba_ssm.ops.triton.selective_state_update import selective_state_update
assert importlib.util.find_spec("mamba_ssm")
assert mamba_ssm.ops.selective_scan_interface.selective_scan_fn is selective_scan_fn
assert selective_scan_fn is adder.compat.selective_scan_fn and Mamba is Same
try:
    import mamba_ssm.ops.triton.ssd_combined
except ModuleNotFoundError:
    pass
else:
    raise AssertionError("no error")

torch.manual_seed(0)
block = Mamba(16, d_state=4, layer_idx=0, use_fast_path=True)
x = torch.randn(2, 9, 16)
whole = block(x)
class Params:
    seqlen_offset, key_value_memory_dict = 0, {}
pieces = []
for begin, end in ((0, 4), (4, 5), (5, 9)):
    Params.seqlen_offset = begin
    pieces.append(block(x[:, begin:end], inference_params=Params))
assert torch.allclose(torch.cat(pieces, 1), whole, atol=1e-6)
assert RMSNorm(16)(x).shape == x.shape

adder.compat.uninstall()
assert "mamba_ssm" not in sys.modules and importlib.util.find_spec("mamba_ssm") is None
""", package_folder())


TRANSFORMERS = PRELUDE + """
from transformers import FalconMambaConfig, FalconMambaForCausalLM, MambaConfig, MambaForCausalLM
falcon, device = sys.argv[3] == "True", sys.argv[4]
model_class, config_class = (FalconMambaForCausalLM, FalconMambaConfig) if falcon else (MambaForCausalLM, MambaConfig)

def results():
    out = {}
    for training in (False, True):
        for bias in (False, True):
            torch.manual_seed(1)
            config = config_class(vocab_size=50, hidden_size=32, num_hidden_layers=2, state_size=8, use_bias=bias)
            model = model_class(config).to(device).train(training)
            ids = torch.randint(1, 50, (2, 17), generator=torch.Generator().manual_seed(0)).to(device)
            mask = torch.ones_like(ids)
            mask[0, :3] = 0
            loss = model(ids, labels=ids, attention_mask=mask).loss
            loss.backward()
            model.eval()
            tokens = model.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False, pad_token_id=0)
            of_model = {name: p.grad for name, p in model.named_parameters()}
            of_model |= {"loss": loss.detach(), "tokens": tokens}
            out |= {f"training={training},bias={bias}: {name}": value for name, value in of_model.items()}
    return out
"""


@pytest.mark.parametrize("falcon", (False, True))
def test_transformers(falcon, tmp_path):
    """Losses, gradients and greedy tokens of tiny models: transformers' own, on Adder before and after its import."""
    pytest.importorskip("transformers", reason="transformers is not installed")
    run(TRANSFORMERS + """
own = results()
calls = []
def counted(name, function):
    return lambda *arguments, **named: (calls.append(name), function(*arguments, **named))[1]
for name in ("causal_conv1d", "selective_scan"):
    setattr(adder.ops, name, counted(name, getattr(adder.ops, name)))
adder.compat.install()
torch.save({"own": own, "patched": results()}, sys.argv[2])
assert {"causal_conv1d", "selective_scan"} <= set(calls), calls
count = len(calls)
adder.compat.uninstall()
assert all(torch.equal(x, y) for x, y in zip(results().values(), own.values())) and len(calls) == count
""", package_folder(), tmp_path / "a.pt", falcon, DEVICE)
    run(TRANSFORMERS.replace("import adder.compat", "import adder.compat\nadder.compat.install()") + """
torch.save({"imported": results()}, sys.argv[2])
""", package_folder(), tmp_path / "b.pt", falcon, DEVICE)
    found = torch.load(tmp_path / "a.pt") | torch.load(tmp_path / "b.pt")
    for which in ("patched", "imported"):
        for name, wanted in found["own"].items():
            got = found[which][name]
            if name.endswith("tokens"):
                assert torch.equal(got, wanted), f"{which}: {name}"
            else:
                close(got, wanted.double(), torch.float32, f"{which}: {name}")
