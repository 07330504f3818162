"""Models as others publish them: folders of config.json and weights, transformers' (mamba, falcon_mamba) or the
original package's (mamba_ssm). Reads and refuses what adder/models/published.cpp does."""

from __future__ import annotations

import difflib
import json
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .block import MambaOptions

if TYPE_CHECKING:
    from .language_model import MambaLM, MambaLMOptions

HEAD, EMBEDDING = "lm_head.weight", "backbone.embedding.weight"
LARGE = ("in_proj.weight", "x_proj.weight", "dt_proj.weight", "out_proj.weight", "embedding.weight", "lm_head.weight")
# What the original package allows in ssm_cfg.
SSM_KEYS = ("layer", "d_state", "d_conv", "expand", "dt_rank", "dt_min", "dt_max", "dt_init", "dt_scale",
            "dt_init_floor", "conv_bias", "bias", "use_fast_path")
KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


class _Keys:
    """The keys of an object, read by type; one that is absent or null is not there."""

    def __init__(self, values: Any, where: str) -> None:
        if not isinstance(values, dict):
            raise ValueError(f"{where}: must be an object, got {type(values).__name__}")
        self.values, self.where = values, where

    def has(self, key: str) -> bool:
        return self.values.get(key) is not None

    def read(self, key: str, kind: type, default: Any) -> Any:
        if not self.has(key):
            return default
        value = self.values[key]
        if kind in (int, float) and isinstance(value, (int, float)) and not isinstance(value, bool):
            if kind is float or value == int(value):
                return kind(value)
        elif isinstance(value, kind):
            return value
        raise ValueError(f"{self.where}: {key} must be {KINDS[kind]}, got {value!r}")

    def fields(self, names: dict[str, tuple[str, type]]) -> dict[str, Any]:
        """Those of the keys that are there, by our names."""
        return {ours: self.read(key, kind, None) for key, (ours, kind) in names.items() if self.has(key)}

    def rank(self, key: str) -> int | str:
        value = self.values.get(key)
        if value is None or value == "auto":
            return "auto"
        if isinstance(value, str):
            raise ValueError(f'{self.where}: {key} must be a whole number or "auto", got {value!r}')
        return self.read(key, int, None)

    def must_be(self, key: str, expected: Any, why: str) -> None:
        got = self.values.get(key)
        if got is not None and got != expected:
            raise ValueError(f"{self.where}: {key} must be {expected!r}, got {got!r}: {why}")


def options_from_config(config: dict[str, Any], where: str = "config.json") -> MambaLMOptions:
    """The model that a config.json describes; what is not this architecture is refused, naming the key."""
    keys = _Keys(config, where)
    return _from_transformers(keys) if keys.has("hidden_size") or keys.has("model_type") else _from_original(keys)


def _from_transformers(keys: _Keys) -> MambaLMOptions:
    from .language_model import MambaLMOptions

    kind = keys.read("model_type", str, "")
    if kind not in ("mamba", "falcon_mamba"):
        more = ": Mamba-2 is another architecture" if kind == "mamba2" else ""
        raise ValueError(f'{keys.where}: model_type must be "mamba" or "falcon_mamba", got {kind!r}{more}')
    keys.must_be("hidden_act", "silu", "no other activation is known here")
    mixer = keys.fields({
        "state_size": ("d_state", int), "conv_kernel": ("d_conv", int), "expand": ("expand", int),
        "use_bias": ("bias", bool), "use_conv_bias": ("conv_bias", bool), "time_step_min": ("dt_min", float),
        "time_step_max": ("dt_max", float), "time_step_floor": ("dt_init_floor", float),
        "time_step_scale": ("dt_scale", float), "time_step_init_scheme": ("dt_init", str)})
    if kind == "falcon_mamba":
        mixer |= {"inner_norm": "rms", "inner_norm_eps": keys.read("mixer_rms_eps", float, 1e-6)}
    # What transformers takes where a key is absent.
    model = {"d_model": 768, "n_layer": 32, "vocab_size": 50280, "pad_vocab_size_multiple": 1} | keys.fields({
        "hidden_size": ("d_model", int), "num_hidden_layers": ("n_layer", int), "vocab_size": ("vocab_size", int),
        "layer_norm_epsilon": ("norm_eps", float), "tie_word_embeddings": ("tie_embeddings", bool)})
    options = MambaLMOptions(**model, mixer=MambaOptions(dt_rank=keys.rank("time_step_rank"), **mixer))
    inner = options.mixer.expand * options.d_model
    got = keys.read("intermediate_size", int, inner)
    if got != inner:
        raise ValueError(f"{keys.where}: intermediate_size must be expand x hidden_size = {inner}, got {got}")
    return options


def _from_original(keys: _Keys) -> MambaLMOptions:
    from .language_model import MambaLMOptions

    for key in ("d_model", "n_layer"):
        if not keys.has(key):
            raise ValueError(
                f"{keys.where}: has neither hidden_size (transformers) nor {key} (the original package): not "
                "the configuration of a Mamba language model")
    keys.must_be("d_intermediate", 0, "blocks with an MLP are another architecture")
    keys.must_be("attn_layer_idx", [], "layers of attention are another architecture")
    mixer = MambaOptions()
    if keys.has("ssm_cfg"):
        ssm = _Keys(keys.values["ssm_cfg"], f"{keys.where}: ssm_cfg")
        ssm.must_be("layer", "Mamba1", "Mamba-2 is another architecture")
        for key in ssm.values:
            if key not in SSM_KEYS:
                near = difflib.get_close_matches(key, SSM_KEYS, 1)
                raise ValueError(f"{ssm.where}: unknown key {key}" + (f"; did you mean {near[0]}?" if near else ""))
        kinds = {"d_state": int, "d_conv": int, "expand": int, "dt_min": float, "dt_max": float, "dt_init": str,
                 "dt_scale": float, "dt_init_floor": float, "conv_bias": bool, "bias": bool}
        mixer = replace(mixer, dt_rank=ssm.rank("dt_rank"), **ssm.fields({k: (k, kind) for k, kind in kinds.items()}))
    model = {"vocab_size": 50277, "pad_vocab_size_multiple": 8} | keys.fields({
        "d_model": ("d_model", int), "n_layer": ("n_layer", int), "vocab_size": ("vocab_size", int),
        "pad_vocab_size_multiple": ("pad_vocab_size_multiple", int), "tie_embeddings": ("tie_embeddings", bool)})
    return MambaLMOptions(**model, norm="rms" if keys.read("rms_norm", bool, True) else "layer", mixer=mixer)


def config_for(o: MambaLMOptions, form: str, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """The way back. Refuses an option that the form ("transformers" or "original") has no word for, naming it."""
    m = o.mixer
    original = form == "original"
    if form not in ("transformers", "original"):
        raise ValueError(f'save_pretrained: form must be "transformers" or "original", got {form!r}')
    rules = [("mixer.complex", m.complex, False), ("mixer.discretization", m.discretization, "euler"),
             ("mixer.selective_B", m.selective_B, True), ("mixer.selective_C", m.selective_C, True)]
    rules += [("mixer.inner_norm", m.inner_norm, "none"), ("norm_eps", o.norm_eps, 1e-5)] if original else [
        ("norm", o.norm, "rms")]
    if m.dt_rank == "none":
        rules.append(("mixer.dt_rank", m.dt_rank, "a number"))
    for name, got, wanted in rules:
        if got != wanted:
            owner = "the original package" if original else "transformers"
            raise ValueError(f"save_pretrained: {owner} has no model with {name} = {got}")
    if original:
        mixer = {key: getattr(m, key) for key in SSM_KEYS if hasattr(m, key)}
        return {"d_model": o.d_model, "d_intermediate": 0, "n_layer": o.n_layer, "vocab_size": o.vocab_size,
                "ssm_cfg": mixer, "attn_layer_idx": [], "attn_cfg": {}, "rms_norm": o.norm == "rms",
                "residual_in_fp32": True, "fused_add_norm": True, "pad_vocab_size_multiple": o.pad_vocab_size_multiple,
                "tie_embeddings": o.tie_embeddings}
    falcon = m.inner_norm == "rms"
    config = {
        "architectures": ["FalconMambaForCausalLM" if falcon else "MambaForCausalLM"],
        "model_type": "falcon_mamba" if falcon else "mamba",
        "dtype": str(dtype).removeprefix("torch."),
        "hidden_size": o.d_model,
        "num_hidden_layers": o.n_layer,
        "vocab_size": o.padded_vocab,
        "state_size": m.d_state,
        "conv_kernel": m.d_conv,
        "expand": m.expand,
        "intermediate_size": m.expand * o.d_model,
        "time_step_rank": m.rank(o.d_model),
        "time_step_min": m.dt_min,
        "time_step_max": m.dt_max,
        "time_step_floor": m.dt_init_floor,
        "time_step_scale": m.dt_scale,
        "time_step_init_scheme": m.dt_init,
        "use_bias": m.bias,
        "use_conv_bias": m.conv_bias,
        "hidden_act": "silu",
        "layer_norm_epsilon": o.norm_eps,
        "residual_in_fp32": True,
        "tie_word_embeddings": o.tie_embeddings
    }
    return config | ({"mixer_rms_eps": m.inner_norm_eps} if falcon else {})


def _read_file(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        try:
            from safetensors.torch import load_file
        except ImportError as error:
            raise ImportError(
                f"{path}: reading safetensors needs the package safetensors: pip install safetensors") from error
        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # runs no pickled code


def _read_weights(folder: Path) -> dict[str, Tensor]:
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return _read_file(folder / name)
        if index.is_file():
            tensors: dict[str, Tensor] = {}
            parts = json.loads(index.read_text())
            if not isinstance(parts, dict) or not isinstance(parts.get("weight_map"), dict):
                raise ValueError(f'{index}: must hold an object "weight_map"')
            for part in sorted(set(parts["weight_map"].values())):
                if Path(part).name != part:
                    raise ValueError(f"{index}: the part {part!r} must lie in the same folder")
                tensors |= _read_file(folder / part)
            return tensors
    raise FileNotFoundError(
        f"{folder}: has no weights: neither model.safetensors nor pytorch_model.bin nor an index of parts")


def _original_name(name: str) -> str:
    name = name if name.startswith(("lm_head.", "backbone.")) else f"backbone.{name}"  # a model without its head
    return name.replace("backbone.embeddings.", "backbone.embedding.", 1)


def load_published(path: str | os.PathLike, kind: type[MambaLM]) -> MambaLM:
    """The model in evaluation mode, parameters float32. Missing, surplus and misshapen tensors are one error."""
    folder = Path(path)
    if not (folder / "config.json").is_file():
        ours = (folder / "checkpoint.json").is_file()
        more = ": a checkpoint of adder train; 'adder convert' publishes it" if ours else ""
        raise FileNotFoundError(f"{folder}: has no config.json{more}")
    options = options_from_config(json.loads((folder / "config.json").read_text()), str(folder / "config.json"))
    tensors = {_original_name(name): tensor for name, tensor in _read_weights(folder).items()}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{folder}: tensor {name} must hold real numbers, got {tensor.dtype}")
    if options.tie_embeddings and EMBEDDING in tensors and not torch.equal(tensors.pop(HEAD, tensors[EMBEDDING]),
                                                                           tensors[EMBEDDING]):
        raise ValueError(
            f"{folder}: the configuration says that the head is the embedding, but {HEAD} and {EMBEDDING} differ")
    with torch.device("meta"):  # before anything of a size that a file may name is made
        model = kind(options)
    wanted = dict(model.named_parameters())
    faults = [f"missing: {name}" for name in wanted if name not in tensors]
    faults += [f"surplus: {name}" for name in tensors if name not in wanted]
    faults += [f"{name}: must have shape {tuple(wanted[name].shape)}, got {tuple(tensor.shape)}"
               for name, tensor in tensors.items() if name in wanted and tensor.shape != wanted[name].shape]
    if faults:
        raise ValueError(f"{folder}: the tensors do not fit the model:\n  " + "\n  ".join(faults))
    model = model.to_empty(device="cpu")
    if options.tie_embeddings:
        model.lm_head.weight = model.backbone.embedding.weight
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[name])
    return model.eval()


def save_published(model: MambaLM, path: str | os.PathLike, form: str = "transformers",
                   dtype: torch.dtype = torch.float32) -> None:
    """Large matrices in dtype, the rest float32. transformers reads safetensors, the original package
    pytorch_model.bin."""
    folder = Path(path)
    config = config_for(model.options, form, dtype)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder}: is there already; nothing is written over")
    tensors = {}
    for name, parameter in model.named_parameters():
        kept = dtype if name.endswith(LARGE) else torch.float32
        theirs = name.replace("backbone.embedding.", "backbone.embeddings.") if form == "transformers" else name
        tensors[theirs] = parameter.detach().to("cpu", kept).contiguous()
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Whole or not at all: written beside its name, then renamed, which may replace an empty folder.
    written = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        written.chmod(0o777 & ~_umask())
        if form == "original":
            if model.options.tie_embeddings:  # the original package asks for the head by name
                tensors[HEAD] = tensors[EMBEDDING]
            torch.save(tensors, written / "pytorch_model.bin")
        else:
            from safetensors.torch import save_file

            save_file(tensors, written / "model.safetensors", metadata={"format": "pt"})
        (written / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        written.rename(folder)
    except BaseException:
        shutil.rmtree(written, ignore_errors=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
