#!/usr/bin/env python3
"""Reads every #include of the project and fails where one breaks the layers of docs/architecture.md."""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Each part may include core, itself, what its row names, and what that may include.
LAYERS = {
    "core": [], "kernels": [], "device": [], "ops": ["kernels", "device"], "weights": [], "nn": ["ops"],
    "models": ["nn", "weights"], "data": [], "tasks": ["data", "models"], "dist": ["device"], "infer": ["models", "device"],
    "train": ["tasks", "dist", "device", "weights"], "serve": ["infer", "data"],
}
TORCH_FREE = {"core", "kernels"}
TORCH = re.compile(r"^(torch|ATen|c10|caffe2)/")
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')


def reachable(part):
    seen, stack = {"core", part}, [part]
    while stack:
        for below in LAYERS[stack.pop()]:
            if below not in seen:
                seen.add(below)
                stack.append(below)
    return seen


def main():
    faults, files = [], 0
    for path in sorted((ROOT / "adder").rglob("*")):
        if path.suffix not in {".h", ".cpp", ".cu", ".cuh"}:
            continue
        files += 1
        where = path.relative_to(ROOT)
        part = where.parts[1]
        if part not in LAYERS:
            faults.append(f"{where}: '{part}' is no part of docs/architecture.md")
            continue
        allowed = reachable(part)
        for number, line in enumerate(path.read_text().splitlines(), 1):
            match = INCLUDE.match(line)
            if not match:
                continue
            quote, name = match.groups()
            if part in TORCH_FREE and TORCH.match(name):
                faults.append(f"{where}:{number}: {part}/ must not include torch ({name})")
            elif name.startswith("adder/"):
                other = name.split("/")[1]
                if other not in allowed:
                    faults.append(f"{where}:{number}: {part}/ must not include {other}/ (may: {', '.join(sorted(allowed))})")
            elif quote == '"' and not name.startswith("hwy/"):  # Highway includes its own headers with quotes
                faults.append(f'{where}:{number}: include project headers as "adder/part/file.h", got "{name}"')
            elif name.startswith(("cli/", "tests/")):
                faults.append(f"{where}:{number}: the library must not include {name}")
    for fault in faults:
        print(fault)
    print(f"check_layers: {files} files, {len(faults)} faults")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
