"""Tests and references of mamba_ssm and causal_conv1d, read from checkouts and changed in memory."""
from __future__ import annotations

import ast
import os
import re
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch

# Test files with the references that they import, each with the file that has it.
SCAN = "mamba/mamba_ssm/ops/selective_scan_interface.py"
CONV = "causal-conv1d/causal_conv1d/causal_conv1d_interface.py"
VARLEN = "causal-conv1d/causal_conv1d/causal_conv1d_varlen.py"
STEP = "mamba/mamba_ssm/ops/triton/selective_state_update.py"
REFERENCES = {SCAN: ("selective_scan_ref", "mamba_inner_ref"), VARLEN: ("causal_conv1d_varlen_states_ref",),
              CONV: ("causal_conv1d_ref", "causal_conv1d_update_ref"), STEP: ("selective_state_update_ref",)}
TESTS = ("mamba/tests/ops/test_selective_scan.py", "mamba/tests/ops/triton/test_selective_state_update.py",
         "causal-conv1d/tests/test_causal_conv1d.py")

# The projections of test_mamba_inner_fn are drawn with deviation 1, so that results are up to 1e8: beyond float16, and
# such that float64 does not pass its tolerances. It runs as it is, and with weights of deviation 1 / sqrt(fan-in).
PROJECTIONS = "    out_proj_bias = None\n"

VALUES = re.compile(r"""["'](\w+)["'],\s*(\[[^\]]*\])""")
SWITCHED_OFF = re.compile(r"^( +)# (assert torch\.allclose\((\w+)\.grad.*)$")
PRINTED = re.compile(r"print\(f['\"]\w+ max diff: \{\((\w+)\.grad - \1_ref\.grad\)")


@dataclass
class Test:
    path: Path
    parameters: dict[str, list]
    skips: list[str]  # the conditions under which the test says that a case is none

    def applies(self, case: dict) -> bool:
        return not any(eval(condition, {"torch": torch}, case) for condition in self.skips)


def find_tests(peers: Path) -> dict[str, Test]:
    """Each test with every value of its parameters that stands in its file, in comments too."""
    found = {}
    for name in TESTS:
        source = (peers / name).read_text()
        lines, before = source.splitlines(), 0
        for node in ast.parse(source).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                names = [argument.arg for argument in node.args.args if argument.arg != "monkeypatch"]
                parameters: dict[str, list] = {parameter: [] for parameter in names}
                for parameter, values in VALUES.findall("\n".join(lines[before:node.lineno - 1])):
                    there = parameters[parameter]
                    there += [value for value in eval(values, {"torch": torch}) if value not in there]
                if PROJECTIONS in "\n".join(lines[node.lineno:node.end_lineno]):
                    parameters["by_fan_in"] = [False, True]
                skips = [ast.unparse(part.test) for part in node.body
                         if isinstance(part, ast.If) and "pytest.skip(" in ast.unparse(part)]
                found[node.name] = Test(peers / name, parameters, skips)
            before = node.end_lineno
    return found


def switch_on(function: str) -> str:
    """A test's source with the assertions on gradients that stand in comments, and with one for each gradient that it
    only prints. Lines keep their numbers."""
    lines, i = function.splitlines(), 0
    while i < len(lines):
        match = SWITCHED_OFF.match(lines[i])
        if match:
            indent, statement, name = match.groups()
            last = i
            while statement.count("(") > statement.count(")"):
                last += 1
                statement += lines[last].strip(" #")
                lines[last] = ""
            defined = re.search(rf"^ +{name} = ", function, re.MULTILINE)
            lines[i] = f"{indent}if {name} is not None: {statement}" if defined else ""
            i = last
        i += 1
    asserted = set(re.findall(r"^ [^#\n]*assert torch\.allclose\((\w+)\.grad", "\n".join(lines), re.MULTILINE))
    for name in dict.fromkeys(PRINTED.findall(function)):
        if name not in asserted:
            lines.append(f"    if {name} is not None: assert near({name}.grad, {name}_ref.grad, rtol)")
    return "\n".join(lines)


class Recorded(ast.NodeTransformer):
    """Comparisons are recorded, so that a case shows all that differ and not the first alone."""

    def visit_Assert(self, node: ast.Assert) -> ast.stmt:
        if not ast.unparse(node.test).startswith(("torch.allclose(", "near(")):
            return node
        call = node.test
        name = "compare" if ast.unparse(call.func) == "torch.allclose" else "near"
        what = ast.Constant(ast.unparse(call.args[0]))
        return ast.copy_location(ast.Expr(ast.Call(ast.Name(name, ast.Load()), [what, *call.args], call.keywords)),
                                 node)


@dataclass
class Comparison:
    what: str
    passed: bool
    error: float  # norm of the difference over values that are finite in both
    allowed: float  # rtol of the norm of the reference
    overflow: bool  # the reference is not finite
    why: str


_comparisons: list[Comparison] = []


def record(what: str, a: torch.Tensor, b: torch.Tensor, rtol: float, atol: float | None) -> None:
    """atol None: the norm of the difference is to be within rtol of the norm."""
    passed = atol is None or torch.allclose(a, b, rtol=rtol, atol=atol)
    wide = torch.complex128 if a.is_complex() else torch.float64
    a, b = a.detach().to(wide), b.detach().to(wide)
    finite = a.isfinite() & b.isfinite()
    difference, size = torch.where(finite, a - b, 0).abs(), torch.where(finite, b, 0).abs()
    error, allowed = difference.norm().item(), rtol * size.norm().item()
    why = ""
    if atol is None:
        passed = bool(finite.all()) and error <= allowed
    if not passed:
        beyond = (difference > atol + rtol * size).sum().item() if atol is not None else "?"
        why = (f"{what} (rtol {rtol}, atol {atol}): {beyond} of {a.numel()} beyond, difference up to "
               f"{difference.max().item():.3g} at values up to {size.max().item():.3g}, not finite "
               f"{(~a.isfinite()).sum().item()}, in the reference {(~b.isfinite()).sum().item()}")
    _comparisons.append(Comparison(what, passed, error, allowed, not b.isfinite().all(), why))


def compare(what: str, a: torch.Tensor, b: torch.Tensor, rtol: float = 1e-5, atol: float = 1e-8) -> None:
    record(what, a, b, rtol, atol)


def near(what: str, a: torch.Tensor, b: torch.Tensor, rtol: float) -> None:
    record(what, a, b, rtol, None)


def moved(source: str, device: str, repeats: int) -> str:
    tree, lines = ast.parse(source), source.splitlines()
    nodes = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    for node, after in reversed(list(zip(nodes, nodes[1:] + [None]))):
        end = len(lines) if after is None else min([after.lineno] + [d.lineno for d in after.decorator_list]) - 1
        while end > node.lineno and not lines[end - 1].startswith(" "):
            end -= 1
        lines[node.lineno - 1:end] = switch_on("\n".join(lines[node.lineno - 1:end])).splitlines()
    source, found = re.subn(r"""(\bdevice ?= ?)['"]cuda['"]""", rf'\1"{device}"', "\n".join(lines))
    if not found:
        raise RuntimeError("a test file must name its device as device = 'cuda', found no such line")
    if device == "cpu":
        source = source.replace("torch.cuda.synchronize()", "pass")
    source = source.replace(PROJECTIONS, PROJECTIONS[:-1] + "; by_fan_in and shrink("
                            "x_proj_weight, delta_proj_weight, out_proj_weight)\n")
    return source.replace("range(10000)", f"range({repeats})")


@torch.no_grad()
def shrink(*weights: torch.Tensor) -> None:
    for weight in weights:
        weight.mul_(weight.shape[1]**-0.5)


def execute(path: Path, source: str | ast.Module | None = None, **names: object) -> ModuleType:
    module = ModuleType(path.stem)
    module.__file__ = str(path)
    exec(compile(source or path.read_text(), str(path), "exec"), vars(module))
    vars(module).update(names)
    return module


def stand_in(name: str, **contents: object) -> None:
    """What the references' files import and the references do not use."""
    module = sys.modules.setdefault(name, ModuleType(name))
    for key, value in contents.items():
        if not hasattr(module, key):
            setattr(module, key, value)


def load_references(peers: Path, double: bool) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, functions in REFERENCES.items():
        source = (peers / name).read_text()
        module = execute(peers / name, source.replace(".float()", ".double()") if double else source)
        found |= {function: getattr(module, function) for function in functions}
        if name == SCAN:
            inner = module
    # mamba_inner_ref calls the functions under test: it gets the references instead.
    inner.selective_scan_fn, inner.causal_conv1d_fn = inner.selective_scan_ref, found["causal_conv1d_ref"]
    return found


# The functions that a reference in float64 can stand in for.
EXACT = {"selective_scan_ref": "selective_scan_fn", "mamba_inner_ref": "mamba_inner_fn",
         "causal_conv1d_ref": "causal_conv1d_fn", "selective_state_update_ref": "selective_state_update"}


def wide(value):
    if not isinstance(value, torch.Tensor):
        return value
    return value.to(torch.complex128 if value.is_complex() else torch.float64)


class Exactly:
    """A reference in float64, which takes and gives the types of the function that it stands in for."""

    def __init__(self, reference) -> None:
        self.reference, self.calls = reference, 0

    def __call__(self, first, *arguments, state_batch_indices=None, **named):
        self.calls += 1
        arguments, named = map(wide, arguments), {name: wide(value) for name, value in named.items()}
        if self.reference.__name__ != "selective_state_update_ref":
            out = self.reference(wide(first), *arguments, **named)
            if not isinstance(out, tuple):
                return out.to(first.dtype)
            kept = first.dtype if self.reference.__name__ == "causal_conv1d_ref" else torch.float32
            return out[0].to(first.dtype), out[1].to(torch.complex64 if out[1].is_complex() else kept)
        rows = slice(None) if state_batch_indices is None else state_batch_indices
        x, *arguments = arguments
        state = wide(first[rows])
        out = self.reference(state, x, *arguments, **named)
        first[rows] = state.to(first.dtype)
        return out.to(first.dtype)  # x has the state's type in the tests


class XFailed(Exception):
    pass


class _Marks:
    """pytest.mark: parameters are read from the source."""

    def __getattr__(self, name: str):
        return lambda *_, **__: lambda function: function


def _xfail(reason: str) -> None:
    raise XFailed(reason)


class _Environment:
    """What the tests use of pytest's monkeypatch."""

    @staticmethod
    def delenv(name: str, raising: bool = True) -> None:
        os.environ.pop(name, None)


_tests: dict[str, ModuleType] = {}
_exact: dict[str, object] = {}


def begin(peers: Path, device: str, threads: int, repeats: int) -> None:
    """Prepares a process for run_case."""
    torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = False
    sys.path.append(str(peers))
    import adder.compat
    adder.compat.install()
    sys.modules["pytest"] = ModuleType("pytest")
    stand_in("pytest", mark=_Marks(), xfail=_xfail)
    stand_in("causal_conv1d.cpp_functions", causal_conv1d_fwd_function=None, causal_conv1d_bwd_function=None,
             causal_conv1d_update_function=None)
    stand_in("mamba_ssm.utils")
    stand_in("mamba_ssm.utils.torch", custom_fwd=lambda function: function, custom_bwd=lambda function: function)
    stand_in("mamba_ssm.ops.triton.layer_norm", _layer_norm_fwd=None)
    stand_in("mamba_ssm.ops.triton.softplus", softplus=None)
    references = load_references(peers, double=False)
    _exact.update({name: Exactly(function) for name, function in load_references(peers, double=True).items()
                   if name in EXACT})
    for name, module in sys.modules.items():
        if name.split(".")[0] in ("mamba_ssm", "causal_conv1d"):
            vars(module).update(references)  # over adder.compat's own functions of these names
    for name in TESTS:
        tree = Recorded().visit(ast.parse(moved((peers / name).read_text(), device, repeats)))
        module = execute(peers / name, ast.fix_missing_locations(tree), compare=compare, near=near, shrink=shrink,
                         print=lambda *_: None)
        _tests.update({key: module for key in vars(module) if key.startswith("test_")})


def attempt(name: str, case: dict, **functions: object) -> tuple[list[Comparison], str]:
    """The comparisons of a case with some functions in the place of those that the test imports, and the error that
    ended it."""
    module, error, case = _tests[name], "", dict(case)
    module.by_fan_in = case.pop("by_fan_in", False)
    kept = {key: vars(module)[key] for key in functions if key in vars(module)}
    vars(module).update({key: functions[key] for key in kept})
    _comparisons.clear()
    function = getattr(module, name)
    try:
        function(**case, **({"monkeypatch": _Environment} if "monkeypatch" in function.__code__.co_varnames else {}))
    except Exception as raised:
        line = traceback.extract_tb(raised.__traceback__)[-1].line
        error = f"{type(raised).__name__}: {str(raised)[:300]} ({line})"
    vars(module).update(kept)
    return list(_comparisons), error


def run_case(chosen: tuple[str, dict]) -> dict:
    name, case = chosen
    started = time.monotonic()
    seen, error = attempt(name, case)
    wrong = [i for i, comparison in enumerate(seen) if not comparison.passed]
    result = {"test": name, "case": case, "outcome": "failed" if wrong or error else "passed"}
    if not wrong and not error:
        return result | {"seconds": time.monotonic() - started}
    before = sum(exact.calls for exact in _exact.values())
    reference, same = attempt(name, case, **{EXACT[key]: exact for key, exact in _exact.items()})
    judged = sum(exact.calls for exact in _exact.values()) > before
    if error:
        result |= {"at": error.split(":")[0], "why": error}
        if error.startswith("XFailed"):
            result["outcome"] = "xfail"
        elif judged and same == error:
            result["outcome"] = "test's error"
    else:
        ours, _ = attempt(name, case, **_exact)
        distances = [f"; distance from float64 {ours[i].error:.3g}, of the reference {reference[i].error:.3g}"
                     if judged else "" for i in wrong]
        result |= {"at": ", ".join(seen[i].what for i in wrong),
                   "why": "; ".join(seen[i].why + distance for i, distance in zip(wrong, distances))}
        if judged and not all(comparison.passed for comparison in reference) and all(
                seen[i].overflow or ours[i].error <= max(2 * reference[i].error, ours[i].allowed) for i in wrong):
            result["outcome"] = "overflow" if any(seen[i].overflow for i in wrong) else "reference's rounding"
    return result | {"seconds": time.monotonic() - started}
