#!/usr/bin/env python3
"""Runs the own tests of mamba_ssm and causal_conv1d on adder.compat.

  ADDER_PEERS=FOLDER tests/peers/reference_tests.py [--device cuda] [--sample 1600] [--json OUT]

FOLDER holds checkouts named mamba and causal-conv1d; einops, which they import, is installed or lies there too. Tests
and `*_ref` functions are read there and changed in memory alone: every list of parameter values is used, those in
comments too; assertions in comments are switched on, and gradients that are only printed are compared by their norm;
tests run on the device asked for. A case that does not pass is

  failed                  or one of
  reference's rounding    the reference computed in float64 does not pass in Adder's place either, and Adder is at most
                          twice as far from it as the reference in its own types, or within the test's rtol by norm
  overflow                the reference is not finite either (float16)
  test's error            the test raises the same with the reference in Adder's place
  xfail                   the test calls pytest.xfail
"""
from __future__ import annotations

import argparse
import collections
import itertools
import json
import multiprocessing
import os
import random
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2] / "python")]

import reference_sources  # noqa: E402

# The loops over time differentiate through (B, D, L, N) once a step: what they write, in numbers.
WORK = {"test_selective_scan": lambda case: 2 * 4 * 8 * case["seqlen"]**2,
        "test_mamba_inner_fn": lambda case: 2 * 768 * 8 * case["seqlen"]**2}


OUTCOMES = ("passed", "failed", "reference's rounding", "overflow", "test's error", "xfail")


def choose(cases: dict[str, list], count: int, seed: int) -> list[tuple[str, dict]]:
    """count cases in a random order: the same number of each test, and of a test with fewer all."""
    draw, chosen, left = random.Random(seed), [], count
    tests = sorted(cases, key=lambda name: len(cases[name]))
    for i, name in enumerate(tests):
        taken = min(len(cases[name]), left // (len(tests) - i))
        chosen += [(name, case) for case in draw.sample(cases[name], taken)]
        left -= taken
    draw.shuffle(chosen)
    return chosen


def written(case: dict) -> str:
    return ", ".join(f"{name}={str(value).removeprefix('torch.')}" for name, value in case.items())


def run(arguments: argparse.Namespace) -> dict:
    tests = reference_sources.find_tests(arguments.peers)
    cases, left_out = {}, collections.Counter()
    for name, test in tests.items():
        if arguments.tests and arguments.tests not in name:
            continue
        there = [dict(zip(test.parameters, values)) for values in itertools.product(*test.parameters.values())]
        there = [case for case in there if test.applies(case)]
        cases[name] = [case for case in there if WORK.get(name, lambda case: 0)(case) <= arguments.max_elements]
        left_out[name] = len(there) - len(cases[name])
    total = sum(map(len, cases.values()))
    chosen = choose(cases, min(arguments.sample or total, total), arguments.seed)
    started, results = time.monotonic(), []
    context = multiprocessing.get_context("spawn")
    settings = (arguments.peers, arguments.device, arguments.threads, arguments.repeats)
    with context.Pool(arguments.jobs, reference_sources.begin, settings) as pool:
        coming = pool.imap_unordered(reference_sources.run_case, chosen)
        try:
            while len(results) < len(chosen):
                results.append(coming.next(started + arguments.time_limit - time.monotonic()))
        except multiprocessing.TimeoutError:
            pool.terminate()
    by_test = {name: {"cases": len(cases[name]), "too_large": left_out[name]} |
               collections.Counter(result["outcome"] for result in results if result["test"] == name)
               for name in cases}
    return {"device": arguments.device, "seed": arguments.seed, "chosen": len(chosen), "ran": len(results),
            "outcomes": collections.Counter(result["outcome"] for result in results),
            "seconds": round(time.monotonic() - started, 1), "tests": by_test,
            "not_passed": [result | {"case": written(result["case"])}
                           for result in results if result["outcome"] != "passed"]}


def print_report(report: dict) -> None:
    print(f"{'test':58}{'cases':>7}{'too large':>10}" + "".join(f"{name:>{len(name) + 2}}" for name in OUTCOMES))
    for name, counts in report["tests"].items():
        print(f"{name:58}{counts['cases']:7}{counts['too_large']:10}" + "".join(
            f"{counts.get(outcome, 0):{len(outcome) + 2}}" for outcome in OUTCOMES))
    print(f"{report['ran']} of {report['chosen']} cases ran in {report['seconds']} s on {report['device']}: " +
          ", ".join(f"{count} {outcome}" for outcome, count in report["outcomes"].items()))
    alike = collections.defaultdict(list)
    for result in report["not_passed"]:
        alike[result["test"], result["outcome"], result["at"]].append(result)
    for (name, outcome, at), results in alike.items():
        print(f"\n{len(results)} x {name}: {outcome} at {at}\n  {results[0]['case']}\n  {results[0]['why']}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, default=os.environ.get("ADDER_PEERS"), help="the folder of the checkouts")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--tests", help="only tests with this in their name")
    parser.add_argument("--sample", type=int, default=0, help="cases to draw; 0: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--time-limit", type=float, default=1e6, help="seconds, after which the rest is left out")
    parser.add_argument("--max-elements", type=float, default=1e30, help="leave out cases whose reference writes more")
    parser.add_argument("--repeats", type=int, default=100, help="of the test for races, in place of its 10,000")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--threads", type=int, default=1, help="threads of each process")
    parser.add_argument("--json", type=Path, help="also write the report to this file")
    arguments = parser.parse_args()
    if arguments.peers is None:
        parser.error("--peers or ADDER_PEERS must name the folder of the checkouts")
    report = run(arguments)
    print_report(report)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1))
    return int(report["outcomes"]["failed"] > 0 or report["ran"] == 0)


if __name__ == "__main__":
    sys.exit(main())
