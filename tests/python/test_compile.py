"""torch.compile(fullgraph=True, dynamic=True) of the modules: one graph over lengths. The operators' own tests have the
same for each."""

import pytest
import torch
import torch._dynamo.testing
from torch._subclasses.fake_tensor import FakeTensorMode

import adder

LENGTHS = (7, 5, 2, 66, 130)


def same(got, want):
    got, want = (torch.utils._pytree.tree_leaves(x) for x in (got, want))
    for x, y in zip(got, want, strict=True):
        torch.testing.assert_close(x, y)


def check(module, calls, loss):
    """Outputs and gradients are the eager ones for every call, and no call but the first compiles."""
    torch._dynamo.reset()
    compiler = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, backend=compiler, fullgraph=True, dynamic=True)
    parameters = list(module.parameters())
    counts = []
    for arguments, named in calls:
        got, want = compiled(*arguments, **named), module(*arguments, **named)
        same(got, want)
        same(torch.autograd.grad(loss(got), parameters), torch.autograd.grad(loss(want), parameters))
        counts.append(compiler.frame_count)
    # The first call may compile twice: the compiler starts over where an argument is a float.
    assert counts == counts[:1] * len(counts) and 1 <= counts[0] <= 2, counts


@pytest.mark.parametrize("choices", ({}, dict(complex=True), dict(inner_norm="rms", d_conv=3)),
                         ids=("base", "complex", "falcon"))
@pytest.mark.parametrize("reverse", (False, True))
def test_block(choices, reverse, device):
    torch.manual_seed(0)
    block = adder.Mamba(16, d_state=4, **choices).to(device)
    window, state = block(torch.randn(2, 9, 16, device=device))[1].detach()
    calls = [((torch.randn(2, L, 16, device=device), adder.MambaState(window, state)), dict(reverse=reverse))
             for L in LENGTHS]
    check(block, calls, lambda out: out[0].square().sum() + out[1].ssm.abs().sum())


@pytest.mark.parametrize("form", ("rows", "packed", "mask"))
def test_model(form, device):
    torch.manual_seed(0)
    model = adder.MambaLM(d_model=16, n_layer=2, vocab_size=21, tie_embeddings=form == "packed").to(device)
    calls = []
    for L in LENGTHS:
        ids = torch.randint(21, (1 if form == "packed" else 2, L), device=device)
        named = {}
        if form == "packed":
            named["cu_seqlens"] = torch.tensor([0, L // 3, L // 3, L])
        if form == "mask":
            named["mask"] = torch.rand(2, L, device=device) < 0.7
        calls.append(((ids, ), named))
    check(model, calls, lambda out: out[0].square().sum())


def test_loss_under_autocast(device):
    torch.manual_seed(0)
    model = adder.MambaLM(d_model=16, n_layer=2, vocab_size=21).to(device)

    class Loss(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, ids, targets):
            with torch.autocast(device, dtype=torch.bfloat16):
                return self.model.loss(ids, targets).mean

    calls = [(tuple(torch.randint(21, (2, 2, L), device=device)), {}) for L in LENGTHS]
    check(Loss(), calls, lambda loss: loss)


def test_decoding_without_gradients(device):
    """A graph for prompts, one for single tokens, whatever the number of tokens."""
    torch.manual_seed(0)
    model = adder.MambaLM(d_model=16, n_layer=2, vocab_size=21).to(device).eval()
    torch._dynamo.reset()
    compiler = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=compiler, fullgraph=True, dynamic=True)
    counts = []
    with torch.no_grad():
        for L in LENGTHS:
            ids = torch.randint(21, (2, L + 3), device=device)
            logits, state = compiled(ids[:, :L].contiguous())
            for t in range(3):
                logits, state = compiled(ids[:, L + t:L + t + 1].contiguous(), state)
            same(logits, model(ids)[0][:, -1:])
            counts.append(compiler.frame_count)
    assert counts == counts[:1] * len(counts), counts


def test_packed_sequences_of_a_gpu_need_no_gpu_to_trace():
    """cu_seqlens is on the CPU; results are where the activations are."""
    with FakeTensorMode():
        x, weight = torch.empty(1, 12, 8, device="cuda"), torch.empty(8, 4, device="cuda")
        offsets = torch.empty(3, dtype=torch.int64)
        y, window = torch.ops.adder.causal_conv1d(x, weight, cu_seqlens=offsets)
        assert y.device.type == window.device.type == "cuda" and window.shape == (2, 3, 8)
        A, B = torch.empty(8, 16, device="cuda"), torch.empty(1, 12, 1, 16, device="cuda")
        y, state = torch.ops.adder.selective_scan(x, x, A, B, B, cu_seqlens=offsets)
        assert y.device.type == state.device.type == "cuda" and state.shape == (2, 8, 16)
        with pytest.raises(RuntimeError, match="two different devices"):
            torch.ops.adder.selective_scan(x, x, A.to("cpu"), B, B)
