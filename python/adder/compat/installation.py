"""Modules named mamba_ssm and causal_conv1d, and transformers on them."""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import inspect
import sys
from collections.abc import Callable
from types import ModuleType

from . import convolution, modules, norm, scan

Contents = dict[str, Callable[..., object]]

_CONV: Contents = {"causal_conv1d_fn": convolution.causal_conv1d_fn,
                   "causal_conv1d_update": convolution.causal_conv1d_update}
_VARLEN: Contents = {"causal_conv1d_varlen_states": convolution.causal_conv1d_varlen_states}
_SCAN: Contents = {"selective_scan_fn": scan.selective_scan_fn, "mamba_inner_fn": scan.mamba_inner_fn}
_STEP: Contents = {"selective_state_update": scan.selective_state_update}
_NORM: Contents = {"RMSNorm": norm.RMSNorm, "layer_norm_fn": norm.layer_norm_fn, "rms_norm_fn": norm.rms_norm_fn}
_BLOCK: Contents = {"Mamba": modules.Mamba}

# The interfaces that the modules have; programs compare them.
VERSIONS = {"mamba_ssm": "2.2.6", "causal_conv1d": "1.5.3"}
MODULES: dict[str, Contents] = {
    "causal_conv1d": _CONV,
    "causal_conv1d.causal_conv1d_interface": _CONV | {"causal_conv1d_ref": convolution.causal_conv1d_fn,
                                                      "causal_conv1d_update_ref": convolution.causal_conv1d_update},
    "causal_conv1d.causal_conv1d_varlen": _VARLEN,
    "mamba_ssm": _SCAN | _BLOCK,
    "mamba_ssm.modules": {},
    "mamba_ssm.modules.mamba_simple": _BLOCK,
    "mamba_ssm.ops": {},
    "mamba_ssm.ops.selective_scan_interface": _SCAN | {"selective_scan_ref": scan.selective_scan_fn,
                                                       "mamba_inner_ref": scan.mamba_inner_fn},
    "mamba_ssm.ops.triton": {},
    "mamba_ssm.ops.triton.layer_norm": _NORM,
    "mamba_ssm.ops.triton.layernorm": _NORM,  # its name before version 2
    "mamba_ssm.ops.triton.selective_state_update": _STEP,
}
# What transformers' models call these functions.
TRANSFORMERS: Contents = _CONV | _STEP | {"mamba_inner_fn": scan.mamba_inner_fn,
                                          "mamba_selective_scan": scan.selective_scan_fn,
                                          "mamba_selective_state_update": scan.selective_state_update}
FALCON = "transformers.models.falcon_mamba.modeling_falcon_mamba"

_replaced_modules: dict[str, ModuleType | None] = {}
_replaced_functions: list[tuple[ModuleType, str, object]] = []


def _make_module(name: str, contents: Contents) -> ModuleType:
    module = ModuleType(name, "Adder in the place of the package of this name.")
    package = any(other.startswith(f"{name}.") for other in MODULES)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None, origin="adder.compat", is_package=package)
    if package:
        module.__path__ = []
    if name in VERSIONS:
        vars(module)["__version__"] = VERSIONS[name]
    vars(module).update(contents)
    return module


def _taking_what_it_knows(function: Callable, original: Callable) -> Callable:
    """transformers passes each model's whole set of arguments on; a kernel gets those it has."""
    known = frozenset(inspect.signature(function).parameters)

    @functools.wraps(original)
    def call(*arguments, **named):
        return function(*arguments, **{name: value for name, value in named.items() if name in known})

    return call


def _patch(module: ModuleType, restorable: bool) -> None:
    """The kernels that a transformers model looked up when it was imported, all wrapped functions of its module."""
    for name, function in TRANSFORMERS.items():
        original = vars(module).get(name)
        if original is None or not hasattr(original, "__wrapped__"):
            continue
        if module.__name__ == FALCON and name == "mamba_inner_fn":
            function = scan.falcon_inner_fn
        if restorable:
            _replaced_functions.append((module, name, original))
        setattr(module, name, _taking_what_it_knows(function, original))


class _AfterImport(importlib.abc.MetaPathFinder):
    """Patches transformers' Falcon Mamba when it is imported: its norm of delta would go another way in training."""

    def find_spec(self, name, path=None, target=None):
        if name != FALCON:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None and spec.loader is not None:
                execute = spec.loader.exec_module
                spec.loader.exec_module = lambda module: (execute(module), _patch(module, False))
                return spec
        return None


_after_import = _AfterImport()


def install() -> None:
    """Registers modules mamba_ssm and causal_conv1d that run on Adder, on CPU and GPU, over installed ones too; models
    of transformers take their fast path on them, also those imported before. Call it before importing programs that use
    them: names they have imported already stay what they are. Calling it again changes nothing."""
    if _replaced_modules:
        return
    made = {name: _make_module(name, contents) for name, contents in MODULES.items()}
    for name in [name for name in sys.modules if name.split(".")[0] in VERSIONS]:
        _replaced_modules[name] = sys.modules.pop(name)
    for name, module in made.items():
        _replaced_modules.setdefault(name, None)
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(made[parent], child, module)
    for name, module in list(sys.modules.items()):
        if name.startswith("transformers.models.") and ".modeling_" in name and isinstance(module, ModuleType):
            _patch(module, True)
    sys.meta_path.insert(0, _after_import)


def uninstall() -> None:
    """Takes install() back. What was imported in between, models of transformers too, keeps Adder's functions."""
    if not _replaced_modules:
        return
    for name in [name for name in sys.modules if name.split(".")[0] in VERSIONS]:
        del sys.modules[name]
    sys.modules.update({name: module for name, module in _replaced_modules.items() if module is not None})
    _replaced_modules.clear()
    for module, name, original in reversed(_replaced_functions):
        setattr(module, name, original)
    _replaced_functions.clear()
    sys.meta_path.remove(_after_import)
