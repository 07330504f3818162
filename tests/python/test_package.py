"""The Python package: loading, modules, states, generation, published folders, the wheel."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from torch.nn import functional

import adder
from adder import _built_for, _library
from adder.generation import allowed, penalised
from adder.published import config_for, options_from_config

ROOT = Path(__file__).parents[2]


def run(script, path, **environment):
    kept = {key: value for key, value in os.environ.items() if key != "ADDER_OPS_LIBRARY"}
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd="/",
                          env={**kept, "PYTHONPATH": str(path), **environment})


# Operators


def test_functions_have_the_schemas_of_the_operators():
    import inspect

    for name in ("selective_scan", "causal_conv1d", "add_norm", "linear_cross_entropy", "small_linear"):
        schema = getattr(torch.ops.adder, name).default._schema
        parameters = inspect.signature(getattr(adder.ops, name)).parameters
        assert [a.name for a in schema.arguments] == list(parameters), name
        for argument in schema.arguments:
            if argument.has_default_value():
                assert parameters[argument.name].default == argument.default_value, f"{name}: {argument.name}"


def test_operators():
    rng = torch.Generator().manual_seed(0)

    def values(*shape):
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    u, delta, z, A, B, C, D = (values(*s)
                               for s in ((2, 5, 3), (2, 5, 3), (2, 5, 3), (3, 4), (2, 5, 1, 4), (2, 5, 1, 4), (3, )))
    A = -A.abs()
    y, h = adder.ops.selective_scan(u, delta, A, B, C, D=D, z=z, delta_softplus=True)
    state = torch.zeros(2, 3, 4, dtype=torch.float64)
    for t in range(5):
        step = functional.softplus(delta[:, t, :, None])
        state = torch.exp(step * A) * state + step * B[:, t] * u[:, t, :, None]
        wanted = ((state * C[:, t]).sum(-1) + D * u[:, t]) * functional.silu(z[:, t])
        torch.testing.assert_close(y[:, t], wanted)
    torch.testing.assert_close(h, state)

    weight = values(3, 4)
    y, window = adder.ops.causal_conv1d(u, weight, D, activation="silu")
    padded = functional.pad(u, (0, 0, 3, 0))
    wanted = functional.silu(D + sum(weight[:, k] * padded[:, k:k + 5] for k in range(4)))
    torch.testing.assert_close(y, wanted)
    torch.testing.assert_close(window, padded[:, 5:])

    y, r = adder.ops.add_norm(u, delta, D)
    torch.testing.assert_close(y, (u + delta) * torch.rsqrt((u + delta).square().mean(-1, keepdim=True) + 1e-5) * D)
    torch.testing.assert_close(r, u + delta)

    x, head, target = values(6, 3), values(9, 3), torch.tensor([0, 6, -100, 2, 3, 1])
    loss, each, predictions = adder.ops.linear_cross_entropy(x, head, target, vocab=7)
    logits = (x @ head.T)[:, :7]
    torch.testing.assert_close(loss, functional.cross_entropy(logits, target))
    torch.testing.assert_close(each, functional.cross_entropy(logits, target, reduction="none"))
    assert torch.equal(predictions, logits.argmax(1))
    torch.testing.assert_close(adder.ops.small_linear(x, head, values(9) * 0 + 1), x @ head.T + 1)
    torch.testing.assert_close(adder.ops.sum_of_squares([x, head]), x.square().sum() + head.square().sum())
    with pytest.raises(ValueError,
                       match=r"selective_scan: delta must have shape \(B, L, D\) = \(2, 5, 3\), got \(2, 4, 3\)"):
        adder.ops.selective_scan(u, delta[:, 1:], A, B, C)


# Modules

CHOICES = {
    "base": {},
    "wide": dict(d_state=5, d_conv=3, expand=3, dt_rank=2, bias=True, conv_bias=False),
    "complex": dict(complex=True, A_init="s4d-lin", discretization="zoh"),
    "random": dict(A_init="random", dt_init="constant"),
    "constant": dict(selective_B=False, selective_C=False, dt_rank="none"),
    "complex constant": dict(complex=True, selective_B=False, selective_C=False),
    "falcon": dict(inner_norm="rms"),
    "one": dict(d_conv=1, d_state=1),
}


def block_reference(block, x):
    """The block in plain operations, step by step."""
    o = block.options
    inner, z = (x @ block.in_proj.weight.T + (block.in_proj.bias if o.bias else 0)).chunk(2, -1)
    length, width = x.shape[1], o.d_conv
    padded = functional.pad(inner, (0, 0, width - 1, 0))
    taps = sum(block.conv1d.weight[:, 0, k] * padded[:, k:k + length] for k in range(width))
    u = functional.silu(taps + (block.conv1d.bias if o.conv_bias else 0))

    def number(values):
        return torch.view_as_complex(values.unflatten(-1, (-1, 2)).contiguous()) if o.complex else values

    def norm(values):
        return values * torch.rsqrt(values.square().mean(-1, keepdim=True) +
                                    o.inner_norm_eps) if o.inner_norm == "rms" else values

    parts = [norm(p) for p in (u @ block.x_proj.weight.T).split(block._parts, -1)] if block._parts else []
    delta = parts.pop(0) @ block.dt_proj.weight.T if block.rank else torch.zeros_like(u)
    delta = functional.softplus(delta + block.dt_proj.bias).unsqueeze(-1)
    constant = [torch.view_as_complex(p) if o.complex else p for p in (block.B, block.C) if p is not None]
    B = number(parts.pop(0)).unsqueeze(2) if o.selective_B else constant.pop(0).expand(*u.shape, -1)
    C = number(parts.pop(0)).unsqueeze(2) if o.selective_C else constant.pop(0).expand(*u.shape, -1)
    A = -torch.exp(block.A_log)
    A = torch.complex(A, block.A_imag) if o.complex else A
    h, out = 0, []
    for t in range(length):
        decay = torch.exp(delta[:, t] * A)
        phi = (decay - 1) / (delta[:, t] * A) if o.discretization == "zoh" else 1
        h = decay * h + phi * delta[:, t] * B[:, t] * u[:, t, :, None]
        y = (C[:, t] * h).sum(-1)
        out.append(((2 * y.real if o.complex else y) + block.D * u[:, t]) * functional.silu(z[:, t]))
    return torch.stack(out, 1) @ block.out_proj.weight.T + (block.out_proj.bias if o.bias else 0)


@pytest.mark.parametrize("name", CHOICES)
def test_block(name):
    torch.manual_seed(0)
    block = adder.Mamba(12, **CHOICES[name]).double()
    x = torch.randn(2, 9, 12, dtype=torch.float64, requires_grad=True)
    y, state = block(x)
    wanted = block_reference(block, x)
    torch.testing.assert_close(y, wanted, rtol=1e-9, atol=1e-12)
    inputs = [x, *block.parameters()]
    weights = torch.randn_like(y)
    for got, want in zip(torch.autograd.grad((y * weights).sum(), inputs),
                         torch.autograd.grad((wanted * weights).sum(), inputs)):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-11)
    pieces, at = [], None
    for begin, end in ((0, 0), (0, 4), (4, 5), (5, 5), (5, 9)):
        piece, at = block(x[:, begin:end], at)
        pieces.append(piece)
    torch.testing.assert_close(torch.cat(pieces, 1), y, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(at, state, rtol=1e-9, atol=1e-12)


def test_block_initialisation():
    torch.manual_seed(0)
    block = adder.Mamba(64, d_state=4, n_layer=4)
    assert torch.equal(block.A_log,
                       torch.log(torch.arange(1.0, 5)).expand(128, 4)) and torch.equal(block.D, torch.ones(128))
    step = functional.softplus(block.dt_proj.bias)
    assert 0.001 <= step.min() < 0.0015 and 0.07 < step.max() <= 0.1 and 0.0085 < step.log().mean().exp() < 0.0118
    for tensor, bound in ((block.in_proj.weight, 64**-0.5), (block.conv1d.weight, 0.5), (block.conv1d.bias, 0.5),
                          (block.x_proj.weight, 128**-0.5), (block.dt_proj.weight, 0.5), (block.out_proj.weight,
                                                                                          128**-0.5 / 2)):
        assert 0.95 * bound < tensor.abs().max() <= bound and abs(tensor.mean()) < 0.1 * bound
    assert adder.Mamba(64, A_init="s4d-lin", complex=True).A_imag[3].tolist() == list(range(16))


def test_model():
    torch.manual_seed(0)
    for tied in (True, False):
        model = adder.MambaLM(d_model=16, n_layer=2, vocab_size=21, tie_embeddings=tied,
                              norm="rms" if tied else "layer")
        names = set(model.state_dict())
        assert {"backbone.embedding.weight", "backbone.layers.1.mixer.A_log", "backbone.layers.0.norm.weight",
                "backbone.layers.0.mixer.dt_proj.bias", "backbone.norm_f.weight", "lm_head.weight"} <= names
        assert ("lm_head.weight" in dict(model.named_parameters())) == (not tied)
        ids, targets = torch.randint(21, (2, 2, 13))
        logits, state = model(ids)
        assert logits.shape == (2, 13, 21)
        loss = model.loss(ids, targets)
        torch.testing.assert_close(loss.mean, functional.cross_entropy(logits.flatten(0, 1), targets.flatten()))
        first, middle = model(ids[:, :5])
        second, end = model(ids[:, 5:], middle)
        torch.testing.assert_close(torch.cat([first, second], 1), logits, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(end, state, rtol=1e-4, atol=1e-6)
        packed, states = model(ids.flatten().unsqueeze(0), cu_seqlens=torch.tensor([0, 13, 13, 26]))
        torch.testing.assert_close(packed.view(2, 13, 21), logits, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(states.select(torch.tensor([0, 2])), state, rtol=1e-4, atol=1e-6)
        mask = torch.ones(2, 15, dtype=torch.bool)
        mask[:, :2] = False
        padded, _ = model(functional.pad(ids, (2, 0)), mask=mask)
        torch.testing.assert_close(padded[:, 2:], logits, rtol=1e-4, atol=1e-6)
        with pytest.raises(ValueError, match=r"MambaLM: ids must lie in \[0, vocab_size\) = \[0, 21\), got 21"):
            model(torch.full((1, 2), 21))
    with torch.device("meta"):
        nowhere = adder.MambaLM(mixer=adder.MambaOptions(complex=True, selective_B=False))
        assert all(p.is_meta for p in nowhere.parameters())
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(ids)[0], logits)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert abs(model.loss(ids, targets).mean - loss.mean) < 0.02


def test_errors_of_options():
    for choices, message in ((dict(d_state=0), "d_state must be a whole number >= 1, got 0"),
                             (dict(dt_rank="all"), "dt_rank must be"), (dict(A_init="x"), "A_init must be one of"),
                             (dict(dt_max=1e-4), "dt_max must not be below dt_min")):
        with pytest.raises(ValueError, match=f"Mamba: {message}"):
            adder.Mamba(8, **choices)
    with pytest.raises(ValueError,
                       match=r"Mamba: x must have shape \(B, L, d_model\) with d_model = 8, got \(1, 2, 9\)"):
        adder.Mamba(8)(torch.zeros(1, 2, 9))


# Generation


def sharp_model(vocab=17):
    torch.manual_seed(0)
    model = adder.MambaLM(d_model=16, n_layer=2, vocab_size=vocab, tie_embeddings=False).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
    return model


def greedy_alone(model, prompt, steps, stops=()):
    ids = list(prompt)
    for _ in range(steps):
        with torch.no_grad():
            token = int(model(torch.tensor([ids]))[0][0, -1].argmax())
        if token in stops:
            return ids[len(prompt):], "stop"
        ids.append(token)
    return ids[len(prompt):], "length"


def test_generate_ragged_prompts_with_a_stop_for_each_row():
    model = sharp_model()
    prompts = [[1, 2, 3], [4], torch.tensor([5, 6, 7, 8, 9, 10]), [11, 12]]
    free = [greedy_alone(model, [int(t) for t in p], 12)[0] for p in prompts]
    stop = next(token for row in free for token in row if any(token not in other for other in free))
    got = model.generate(prompts, max_tokens=12, temperature=0, stop_tokens=[stop])
    assert got == [adder.GeneratedRow(*greedy_alone(model, [int(t) for t in p], 12, (stop,))) for p in prompts]
    assert {row.finish for row in got} == {"stop", "length"} and all(stop not in row.tokens for row in got)
    assert model.generate([[], [4]], start_token=4, max_tokens=3, temperature=0)[0] == model.generate(
        torch.tensor([[4]]), max_tokens=3, temperature=0)[0]
    seen = []
    ended = model.generate(prompts[:2], max_tokens=5, temperature=0,
                           callback=lambda row, token: seen.append(row) or row == 1)
    assert [len(row.tokens) for row in ended] == [5, 1] and ended[1].finish == "callback" and seen == [0, 1, 0, 0, 0, 0]
    assert model.generate([], max_tokens=3) == [] and model.generate([[1]], max_tokens=0)[0].tokens == []


def test_draws_do_not_depend_on_the_batch():
    model = sharp_model()
    prompts = [[1, 2], [3], [4, 5, 6]]
    whole = model.generate(prompts, max_tokens=9, seed=5, top_p=0.95)
    assert model.generate(prompts[:2], max_tokens=9, seed=5, top_p=0.95) == whole[:2]
    assert model.generate(prompts, max_tokens=9, seed=6, top_p=0.95) != whole


def test_what_draws_are_limited_to():
    logits = torch.tensor([[2.0, 1.0, 2.0, 0.0, -1.0], [0.0, 3.0, 0.0, 0.0, 0.0]])
    p = torch.softmax(logits.double(), -1)
    torch.testing.assert_close(allowed(logits), p)
    torch.testing.assert_close(allowed(logits, temperature=0.5), torch.softmax(logits.double() * 2, -1))
    assert (allowed(logits, top_k=1) > 0).tolist() == [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0]]  # of equal ones the lower id
    assert (allowed(logits, top_k=3) > 0).tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 0, 0]]
    assert (allowed(logits, top_p=0.4) > 0).tolist() == [[1, 0, 1, 0, 0], [0, 1, 0, 0, 0]]
    assert (allowed(logits, top_p=0.0) > 0).sum(-1).tolist() == [1, 1]
    assert (allowed(logits, min_p=0.3) > 0).tolist() == [[1, 1, 1, 0, 0], [0, 1, 0, 0, 0]]  # by each row's own largest
    torch.testing.assert_close(allowed(logits, top_k=3, min_p=0.1).sum(-1), torch.ones(2, dtype=torch.float64))
    assert penalised(logits, [[0, 0, 4], [0]], 2.0).tolist() == [[1, 1, 2, 0, -2], [0, 3, 0, 0, 0]]


def test_errors_of_generate():
    model = sharp_model()
    for named, message in ((dict(prompts=[[1], []]), "prompt 1 is empty and there is no start_token"),
                           (dict(prompts=[[1, 17]]),
                            r"token 17 at position 1 of prompt 0 is outside the vocabulary \[0, 17\)"),
                           (dict(prompts=[[1]], top_p=1.5), r"top_p must be in \[0, 1\], got 1.5")):
        with pytest.raises(ValueError, match=f"generate: {message}"):
            model.generate(**named)


# Published folders


@pytest.mark.parametrize("form", ("transformers", "original"))
@pytest.mark.parametrize("tied", (True, False))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_save_and_load(form, tied, dtype, tmp_path):
    torch.manual_seed(0)
    model = adder.MambaLM(d_model=16, n_layer=2, vocab_size=16, tie_embeddings=tied,
                          mixer=adder.MambaOptions(d_state=4, bias=True))
    model.save_pretrained(tmp_path / "m", form=form, dtype=dtype)
    loaded = adder.MambaLM.from_pretrained(tmp_path / "m")
    assert not loaded.training and loaded.options.mixer.bias and loaded.options.mixer.d_state == 4
    ids = torch.randint(16, (1, 7))
    torch.testing.assert_close(loaded(ids)[0], model(ids)[0], rtol=0, atol=0 if dtype == torch.float32 else 0.02)
    assert len(list(loaded.parameters())) == len(list(model.parameters()))
    with pytest.raises(FileExistsError, match="nothing is written over"):
        model.save_pretrained(tmp_path / "m")


@pytest.mark.parametrize("falcon", (False, True))
def test_transformers_reads_and_is_read(falcon, tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    mixer = adder.MambaOptions(inner_norm="rms" if falcon else "none", d_state=4)
    model = adder.MambaLM(d_model=32, n_layer=2, vocab_size=40, mixer=mixer, tie_embeddings=not falcon).eval()
    model.save_pretrained(tmp_path / "ours")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32).eval()
    ids = torch.randint(40, (2, 11))
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, model(ids)[0], rtol=1e-4, atol=1e-5)
        theirs.save_pretrained(tmp_path / "theirs")
        back = adder.MambaLM.from_pretrained(tmp_path / "theirs")
        torch.testing.assert_close(back(ids)[0], model(ids)[0], rtol=0, atol=0)


def test_what_is_refused(tmp_path):
    good = {"d_model": 16, "n_layer": 2, "vocab_size": 16}
    for config, message in (({
            "model_type": "mamba2",
            "hidden_size": 8
    }, "model_type must be .* Mamba-2 is another architecture"), ({
            "model_type": "mamba",
            "hidden_act": "gelu"
    }, "hidden_act must be 'silu', got 'gelu'"), ({
            "model_type": "mamba",
            "hidden_size": 8,
            "intermediate_size": 20
    }, "expand x hidden_size = 16, got 20"), ({
            "model_type": "mamba",
            "hidden_size": "8"
    }, "hidden_size must be a whole number, got '8'"), ({
            "n_layer": 2
    }, "has neither hidden_size"), ({
            **good, "d_intermediate": 4
    }, "d_intermediate must be 0, got 4"), ({
            **good, "attn_layer_idx": [1]
    }, "attn_layer_idx must be"), ({
            **good, "ssm_cfg": {
                "layer": "Mamba2"
            }
    }, "ssm_cfg: layer must be 'Mamba1', got 'Mamba2'"), ({
            **good, "ssm_cfg": {
                "d_sate": 4
            }
    }, "unknown key d_sate; did you mean d_state")):
        with pytest.raises(ValueError, match=message):
            options_from_config(config)
    with pytest.raises(ValueError, match="transformers has no model with mixer.complex = True"):
        config_for(adder.MambaLMOptions(mixer=adder.MambaOptions(complex=True)), "transformers")
    model = adder.MambaLM(adder.MambaLMOptions(**good))
    model.save_pretrained(tmp_path / "m", form="original")
    tensors = torch.load(tmp_path / "m/pytorch_model.bin")
    del tensors["backbone.norm_f.weight"]
    tensors |= {"extra": torch.zeros(2), "backbone.layers.0.mixer.D": torch.zeros(3)}
    torch.save(tensors, tmp_path / "m/pytorch_model.bin")
    with pytest.raises(
            ValueError, match=r"(?s)missing: backbone.norm_f.weight.*surplus: backbone.extra.*mixer.D: must have "
            r"shape \(32,\), got \(3,\)"):
        adder.MambaLM.from_pretrained(tmp_path / "m")
    tensors["lm_head.weight"] = tensors["lm_head.weight"] + 1
    torch.save(tensors, tmp_path / "m/pytorch_model.bin")
    with pytest.raises(ValueError, match="the head is the embedding, but"):
        adder.MambaLM.from_pretrained(tmp_path / "m")


# Loading and the wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    sys.path.insert(0, str(ROOT / "tools/packaging"))
    import adder_wheel

    folder = tmp_path_factory.mktemp("wheel")
    return folder / adder_wheel.build_wheel(str(folder))


def test_wheel(wheel, tmp_path):
    assert wheel.name == f"adder_ssm-{adder.__version__}-py3-none-linux_x86_64.whl"
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path)
    for line in (tmp_path / f"adder_ssm-{adder.__version__}.dist-info/RECORD").read_text().splitlines():
        assert (tmp_path / line.rsplit(",", 2)[0]).is_file()
    script = """
import adder, torch
assert not torch.cuda.is_available()
y, state = adder.Mamba(8)(torch.randn(1, 3, 8))
loaded = {line.split()[-1] for line in open("/proc/self/maps") if "libadder" in line or "libhwy" in line}
print(adder.library, *loaded)
"""
    out = run(script, tmp_path, CUDA_VISIBLE_DEVICES="")
    assert out.returncode == 0, out.stderr
    assert all(word.startswith(str(tmp_path)) for word in out.stdout.split()), out.stdout

    (tmp_path / "adder/lib/built_for.json").write_text(json.dumps({"torch": "1.13.1"}))
    out = run("import adder", tmp_path)
    assert f"was built for torch 1.13.1, but torch {torch.__version__} is installed; install torch 1.13," in out.stderr
    (tmp_path / "adder/lib/built_for.json").unlink()
    (tmp_path / "adder/lib/libadder_ops.so").write_bytes(b"not a library")
    assert f"cannot be loaded into torch {torch.__version__} (built for torch of unknown version)" in run(
        "import adder", tmp_path).stderr
    (tmp_path / "adder/lib/libadder_ops.so").unlink()
    assert "adder: no operator library: looked for libadder_ops.so in" in run("import adder", tmp_path).stderr
    assert "ADDER_OPS_LIBRARY must name the operator library, got /nowhere" in run(
        "import adder", tmp_path, ADDER_OPS_LIBRARY="/nowhere").stderr


def test_the_wheel_asks_for_the_torch_that_it_was_built_for(wheel):
    with zipfile.ZipFile(wheel) as file:
        info = f"adder_ssm-{adder.__version__}.dist-info"
        metadata = file.read(f"{info}/METADATA").decode()
        record = json.loads(file.read("adder/lib/built_for.json"))
    series = ".".join(torch.__version__.split(".")[:2])
    assert f"Requires-Dist: torch=={series}.*\n" in metadata and _built_for.same_series(
        record["torch"], torch.__version__)


def test_versions():
    for a, b, same in (("2.11.0", "2.11.1+cu130", True), ("2.11.0", "2.12.0", False), ("2.1.0", "2.11.0", False)):
        assert _built_for.same_series(a, b) == same
    library = Path(os.environ["ADDER_OPS_LIBRARY"])
    assert _built_for.torch_version_in(_built_for.torch_folder_of(library)) == torch.__version__
    assert _library.find_library() == library and adder.library is None  # conftest had loaded it
    version = (ROOT / "adder/core/version.h").read_text().split('kVersion = "')[1].split('"')[0]
    assert adder.__version__ == version
