#!/usr/bin/env python3
"""transformers' MambaForCausalLM on adder.compat against its own fallback, the same weights and data, in turn in one
process: losses and time of training steps (forward, backward, AdamW) and of greedy generation.

  tests/peers/transformers_speed.py [--model 130m | small] [--steps 2] [--json OUT]

Fails where losses or tokens differ, or a 130M training step takes more than a tenth of the processor time.
"""
from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "python"))

import torch  # noqa: E402
import transformers  # noqa: E402

from adder import compat  # noqa: E402

SHAPES = {"130m": {"hidden_size": 768, "num_hidden_layers": 24, "vocab_size": 50280},
          "small": {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 256}}
WANTED = 10  # times less processor time, at 130m


class Side:
    """A model with its optimizer, run with or without adder.compat."""

    def __init__(self, model: torch.nn.Module, on_adder: bool) -> None:
        self.model, self.on_adder = model, on_adder
        # AdamW's first step moves each weight by lr, however small its gradient: at 1e-4 a change of the weights by
        # half a unit in the last place moves the next loss of the 130M model by 4e-4 of it, at 1e-6 by 1e-6.
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)

    def timed(self, work):
        if self.on_adder:
            compat.install()
        try:
            started, used = time.perf_counter(), time.process_time()
            return work(), time.perf_counter() - started, time.process_time() - used
        finally:
            compat.uninstall()

    def step(self, ids: torch.Tensor) -> float:
        self.model.train()
        loss = self.model(ids, labels=ids, use_cache=False).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()

    def generate(self, ids: torch.Tensor, count: int) -> list[int]:
        self.model.eval()
        out = self.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, min_new_tokens=count,
                                  do_sample=False, pad_token_id=0)
        return out[0, ids.shape[1]:].tolist()


def in_turn(sides: dict[str, Side], runs: int, work) -> tuple[dict[str, list], dict]:
    """What each side gave, and the medians of its times: on the clock, and the processor's, which other load moves
    less."""
    seen = {name: [] for name in sides}
    for run in range(runs):
        for name, side in sides.items():
            seen[name].append(side.timed(lambda: work(side, run)))
    given = {name: [result for result, _, _ in values] for name, values in seen.items()}
    report = {}
    for i, clock in ((1, "seconds"), (2, "processor_seconds")):
        report[clock] = {name: statistics.median(value[i] for value in values) for name, values in seen.items()}
        report[clock]["ratio"] = report[clock]["fallback"] / report[clock]["adder"]
    return given, report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SHAPES, default="130m")
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--steps", type=int, default=2, help="training steps of each; 0: none")
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=32, help="tokens to generate; 0: none")
    parser.add_argument("--runs", type=int, default=3, help="times to generate")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    config = transformers.MambaConfig(**SHAPES[arguments.model])
    model = transformers.MambaForCausalLM(config)
    sides = {"fallback": Side(copy.deepcopy(model), False), "adder": Side(model, True)}
    generator = torch.Generator().manual_seed(1)

    def draw(length: int) -> torch.Tensor:
        return torch.randint(config.vocab_size, (1, length), generator=generator)

    report: dict[str, object] = {"model": arguments.model, "threads": arguments.threads}
    wrong = []
    if arguments.tokens:
        prompts = [draw(arguments.prompt) for _ in range(arguments.runs)]
        with torch.no_grad():
            tokens, report["generation"] = in_turn(
                sides, arguments.runs, lambda side, run: side.generate(prompts[run], arguments.tokens))
        if tokens["adder"] != tokens["fallback"]:
            wrong.append(f"tokens: expected {tokens['fallback']}, got {tokens['adder']}")
    if arguments.steps:
        batches = [draw(arguments.length) for _ in range(arguments.steps)]
        losses, report["training"] = in_turn(sides, arguments.steps, lambda side, run: side.step(batches[run]))
        report["training"]["losses"] = losses
        ratio = report["training"]["processor_seconds"]["ratio"]
        if not torch.allclose(torch.tensor(losses["adder"]), torch.tensor(losses["fallback"]), rtol=1e-5, atol=0):
            wrong.append(f"losses: expected {losses['fallback']}, got {losses['adder']}")
        if arguments.model == "130m" and ratio < WANTED:
            wrong.append(f"training step: expected {WANTED} times less processor time than the fallback, got "
                         f"{ratio:.1f}")
    print(json.dumps(report, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1))
    for line in wrong:
        print(line, file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
