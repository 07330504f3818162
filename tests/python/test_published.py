"""Published folders from Python: read, checked and written by the C++ library, which has its own tests."""

import json
import os
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch

import adder


def test_the_library_of_models_is_loaded_when_it_is_needed():
    """Importing adder, making and running models does not load it."""
    script = """
import adder, torch
model = adder.MambaLM(d_model=8, vocab_size=8)
model(torch.tensor([[1, 2]]))
assert "libadder_models" not in open("/proc/self/maps").read()
try:
    adder.MambaLM.from_pretrained("/nowhere")
except ValueError as error:
    assert "libadder_models" in open("/proc/self/maps").read()
    print(error)
"""
    path = os.path.dirname(os.path.dirname(adder.__file__))
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                         env={**os.environ, "PYTHONPATH": path})
    assert out.returncode == 0, out.stderr
    assert out.stdout == "/nowhere: has no config.json\n"


def test_random_numbers_go_on_as_if_nothing_had_been_read_or_written(tmp_path):
    model = adder.MambaLM(d_model=16, n_layer=2, vocab_size=16)
    before = torch.get_rng_state()
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(torch.get_rng_state(), before)
    adder.MambaLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("form", ("transformers", "original"))
@pytest.mark.parametrize("tied", (True, False))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16))
def test_save_and_load(form, tied, dtype, tmp_path, device):
    torch.manual_seed(0)
    model = adder.MambaLM(d_model=16, n_layer=2, vocab_size=16, tie_embeddings=tied,
                          mixer=adder.MambaOptions(d_state=4, bias=True, dt_rank=3)).to(device)
    model.save_pretrained(tmp_path / "m", form=form, dtype=dtype)
    loaded = adder.MambaLM.from_pretrained(tmp_path / "m").to(device)
    assert not loaded.training
    assert asdict(loaded.options) == {**asdict(model.options),
                                      "pad_vocab_size_multiple": 1 if form == "transformers" else 8}
    assert isinstance(loaded.options.mixer.dt_rank, int)
    for (name, got), (wanted_name, wanted) in zip(loaded.named_parameters(), model.named_parameters(), strict=True):
        assert name == wanted_name and got.dtype == torch.float32 and got.requires_grad and got.is_leaf
        large = got.dim() == 2 and "A_log" not in name
        assert torch.equal(got, wanted.to(dtype).float() if large else wanted), name
    assert (loaded.lm_head.weight is loaded.backbone.embedding.weight) == tied
    loaded.loss(*torch.randint(16, (2, 1, 7), device=device)).mean.backward()  # trains as one that was made here
    assert all(p.grad is not None for p in loaded.parameters())
    with pytest.raises(ValueError, match="m: is there already; nothing is written over"):
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
        theirs.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")  # in parts, with an index
        assert (tmp_path / "theirs/model.safetensors.index.json").is_file()
        back = adder.MambaLM.from_pretrained(str(tmp_path / "theirs"))
        torch.testing.assert_close(back(ids)[0], model(ids)[0], rtol=0, atol=0)


CONFIG = {"d_model": 16, "n_layer": 2, "vocab_size": 16}
REFUSED = (
    ({"model_type": "mamba2", "hidden_size": 8}, "model_type must be .* Mamba-2 is another architecture"),
    ({"model_type": "mamba", "hidden_act": "gelu"}, 'hidden_act must be "silu", got "gelu"'),
    ({"model_type": "mamba", "hidden_size": 8, "intermediate_size": 20}, "expand x hidden_size = 16, got 20"),
    ({"model_type": "mamba", "hidden_size": "8"}, 'hidden_size must be a whole number, got "8"'),
    ({"n_layer": 2}, "has neither hidden_size"),
    ({**CONFIG, "d_intermediate": 4}, "d_intermediate must be 0, got 4"),
    ({**CONFIG, "attn_layer_idx": [1]}, "attn_layer_idx must be"),
    ({**CONFIG, "ssm_cfg": {"layer": "Mamba2"}}, 'ssm_cfg: layer must be "Mamba1", got "Mamba2"'),
    ({**CONFIG, "ssm_cfg": {"d_sate": 4}}, 'unknown key "d_sate"; did you mean d_state'),
)


def test_what_is_refused_in_reading(tmp_path):
    folder = tmp_path / "m"
    adder.MambaLM(**CONFIG).save_pretrained(folder, form="original")
    good = (folder / "config.json").read_text()
    for config, message in REFUSED:
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=f"m/config.json: .*{message}"):
            adder.MambaLM.from_pretrained(folder)
    (folder / "config.json").write_text(good)
    tensors = torch.load(folder / "pytorch_model.bin")
    del tensors["backbone.norm_f.weight"]
    tensors |= {"extra": torch.zeros(2), "backbone.layers.0.mixer.D": torch.zeros(3)}
    torch.save(tensors, folder / "pytorch_model.bin")
    with pytest.raises(ValueError) as error:
        adder.MambaLM.from_pretrained(folder)
    for part in ("m: the tensors do not fit the model:", "missing: backbone.norm_f.weight",
                 "surplus: backbone.extra", "backbone.layers.0.mixer.D: must have shape (32), got (3)"):
        assert part in str(error.value)
    tensors["lm_head.weight"] = tensors["lm_head.weight"] + 1
    torch.save(tensors, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="the head is the embedding, but"):
        adder.MambaLM.from_pretrained(folder)


def test_what_is_refused_in_writing(tmp_path):
    folder = tmp_path / "m"

    def refuses(message, model=None, **how):
        with pytest.raises(ValueError, match=message):
            (model or adder.MambaLM(**CONFIG)).save_pretrained(folder, **how)
        assert not list(tmp_path.iterdir())

    refuses("transformers has no model with model.mixer.complex = true",
            adder.MambaLM(mixer=adder.MambaOptions(complex=True)))
    refuses("the original package has no model with model.mixer.inner_norm = rms",
            adder.MambaLM(mixer=adder.MambaOptions(inner_norm="rms")), form="original")
    refuses('form must be "transformers" or "original", got "gguf"', form="gguf")
    refuses("dtype must be Float, BFloat16 or Half, got Double", dtype=torch.float64)
    wrapped = adder.MambaLM(**CONFIG)
    wrapped.backbone.layers[0].mixer.in_proj = torch.nn.Sequential(wrapped.backbone.layers[0].mixer.in_proj)
    refuses("(?s)the tensors do not fit the model:.*missing: backbone.layers.0.mixer.in_proj.weight.*surplus: "
            "backbone.layers.0.mixer.in_proj.0.weight", wrapped)


def test_a_damaged_file_is_told(tmp_path):
    adder.MambaLM(**CONFIG).save_pretrained(tmp_path / "m")
    file = tmp_path / "m/model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ValueError, match="m/model.safetensors: "):
        adder.MambaLM.from_pretrained(tmp_path / "m")
