#!/usr/bin/env python3
"""Times adder.compat in mamba_ssm's and causal_conv1d's layout, (B, D, L) with time side by side, against the figures
of those packages on one NVIDIA H200 (mamba-ssm e9594ce, causal-conv1d 0d2252d, bfloat16; B and C (B, N, L), N = 16, z,
D, delta_bias, softplus; width 4, bias, silu). Medians of events around ten calls, the changes of layout included.

  tests/peers/compat_speed.py [--json OUT]

Results are compared with loops in float64 first. --device cpu runs a small shape through the same code.
"""
from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[2] / "python"))

from adder import compat  # noqa: E402

# (B, D, L): the packages' forward and forward + backward in ms.
SCAN = {(8, 2048, 2048): (0.5916, 2.8802), (8, 5120, 2048): (1.4496, 7.0784), (64, 2048, 256): (0.5758, 3.4019),
        (1, 2048, 65536): (2.9551, 14.02)}
CONV = {(8, 2048, 2048): (0.05, 0.2348), (8, 5120, 2048): (0.0891, 0.2447)}
STATE, WIDTH, CALLS = 16, 4, 10
TOLERANCE = 1e-2  # of the largest value; bfloat16 rounds to 4e-3


def scan_inputs(shape: tuple[int, int, int], device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    batch, channels, length = shape

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, device=device, dtype=dtype)

    inputs = {"u": normal(*shape), "delta": 0.5 * normal(*shape),
              "A": -torch.arange(1, STATE + 1, device=device, dtype=torch.float32).repeat(channels, 1),
              "B": normal(batch, STATE, length), "C": normal(batch, STATE, length),
              "D": torch.randn(channels, device=device), "z": normal(*shape),
              "delta_bias": torch.rand(channels, device=device) - 4}
    return {name: tensor.requires_grad_() for name, tensor in inputs.items()}


def scan(inputs: dict[str, Tensor]) -> Tensor:
    return compat.selective_scan_fn(**inputs, delta_softplus=True)


def scan_loop(inputs: dict[str, Tensor]) -> Tensor:
    """The formula, step by step."""
    u, delta, A, B, C, D, z, bias = (tensor.double() for tensor in inputs.values())
    delta = functional.softplus(delta + bias[:, None])
    h, out = u.new_zeros(*u.shape[:2], STATE), []
    for t in range(u.shape[2]):
        step = delta[:, :, t, None]
        h = torch.exp(step * A) * h + step * B[:, None, :, t] * u[:, :, t, None]
        out.append((h * C[:, None, :, t]).sum(2))
    return (torch.stack(out, 2) + D[:, None] * u) * functional.silu(z)


def conv_inputs(shape: tuple[int, int, int], device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    inputs = {"x": torch.randn(*shape, device=device, dtype=dtype),
              "weight": 0.5 * torch.randn(shape[1], WIDTH, device=device), "bias": torch.randn(shape[1], device=device)}
    return {name: tensor.requires_grad_() for name, tensor in inputs.items()}


def conv(inputs: dict[str, Tensor]) -> Tensor:
    return compat.causal_conv1d_fn(**inputs, activation="silu")


def conv_loop(inputs: dict[str, Tensor]) -> Tensor:
    x, weight, bias = (tensor.double() for tensor in inputs.values())
    padded = functional.pad(x, (WIDTH - 1, 0))
    return functional.silu(sum(weight[:, j, None] * padded[..., j:j + x.shape[2]] for j in range(WIDTH)) +
                           bias[:, None])


def expect_close(what: str, got: Tensor, expected: Tensor) -> None:
    error = ((got.double() - expected).abs().max() / expected.abs().max()).item()
    if not error <= TOLERANCE:
        sys.exit(f"{what}: expected a difference of at most {TOLERANCE} of the largest value, got {error:.3g}")


def check(name: str, shape: tuple[int, int, int], make: Callable, run: Callable, loop: Callable, device: str) -> None:
    """Gradients at a small size; at the timed one the result of some channels up to some step."""
    small = make((2, 256, 300), device, torch.bfloat16)
    y, expected = run(small), loop(small)
    g = torch.randn_like(y)
    pairs = zip(small, torch.autograd.grad(y, small.values(), g), torch.autograd.grad(expected, small.values(), g))
    expect_close(f"{name}: result", y, expected)
    for key, got, wanted in pairs:
        expect_close(f"{name}: gradient of {key}", got, wanted.double())
    inputs = make(shape, device, torch.bfloat16)
    channels, steps = slice(shape[1] // 2, shape[1] // 2 + 8), slice(0, 1024)
    with torch.no_grad():
        y = run(inputs)
        cut = {key: tensor[..., steps] if key in ("B", "C") else tensor[:, channels, steps] if tensor.dim() == 3 else
               tensor[channels] for key, tensor in inputs.items()}
        expect_close(f"{name} {shape}", y[:, channels, steps], loop(cut))


def median_ms(work: Callable[[dict], object], sets: list[dict], device: str, runs: int) -> float:
    times = []
    for run in range(runs + 2):  # the first two warm up
        if device == "cuda":
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            before.record()
        started = time.perf_counter()
        for i in range(CALLS):
            work(sets[i % len(sets)])
        if device == "cuda":
            after.record()
            torch.cuda.synchronize()
        ms = before.elapsed_time(after) if device == "cuda" else (time.perf_counter() - started) * 1e3
        times.append(ms / CALLS)
    return statistics.median(times[2:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    small = {(2, 64, 256): (float("nan"), float("nan"))}
    report = {"device": torch.cuda.get_device_name() if arguments.device == "cuda" else "cpu"}
    print(f"{'':32}{'forward':>27}{'forward + backward':>30}\n{'':32}" + f"{'ms':>9}{'package':>9}{'ratio':>9}" * 2)
    for name, figures, make, run, loop in (("selective_scan_fn", SCAN, scan_inputs, scan, scan_loop),
                                           ("causal_conv1d_fn", CONV, conv_inputs, conv, conv_loop)):
        for shape, package in (figures if arguments.device == "cuda" else small).items():
            check(name, shape, make, run, loop, arguments.device)
            sets = [make(shape, arguments.device, torch.bfloat16) for _ in range(3)]
            g = torch.randn(shape, device=arguments.device, dtype=torch.bfloat16)
            both = median_ms(lambda inputs: torch.autograd.grad(run(inputs), inputs.values(), g), sets,
                             arguments.device, arguments.runs)
            with torch.no_grad():
                forward = median_ms(run, sets, arguments.device, arguments.runs)
            label = f"{name} B{shape[0]} D{shape[1]} L{shape[2]}"
            report[label] = {"forward_ms": forward, "both_ms": both, "forward_ratio": package[0] / forward,
                             "both_ratio": package[1] / both}
            print(f"{label:32}" + "".join(f"{ms:9.3f}{there:9.3f}{there / ms:9.2f}"
                                          for ms, there in zip((forward, both), package)))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
