"""Which torch an operator library was built for. Packaging reads this file too, where torch may be absent."""

from __future__ import annotations

import json
import mmap
import re
from pathlib import Path
from typing import Any

LIBRARY = "libadder_ops.so"
MODELS_LIBRARY = "libadder_models.so"
RECORD = "built_for.json"


def torch_folder_of(library: Path) -> Path | None:
    """The folder of the torch package that the library was linked with, from the path it looks for libraries in."""
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        found = re.search(rb"[\x00:](/[^\x00:]*/torch)/lib[\x00:]", data)
        return Path(found[1].decode()) if found else None


def torch_version_in(folder: Path) -> str | None:
    """The version of the torch package in a folder, which is not imported."""
    version = folder / "version.py"
    found = re.search(r"^__version__\s*=\s*['\"]([^'\"]+)", version.read_text(), re.M) if version.is_file() else None
    return found[1] if found else None


def _record(library: Path) -> dict[str, Any]:
    """What a wheel carries beside the library; empty where there is none."""
    record = library.with_name(RECORD)
    return json.loads(record.read_text()) if record.is_file() else {}


def torch_built_for(library: Path) -> str | None:
    """The version of torch, where a wheel has the library; None elsewhere."""
    return _record(library).get("torch")


def brought_for(library: Path) -> list[Path]:
    """The libraries beside it that a wheel has for it."""
    return [library.with_name(name) for name in _record(library).get("brought", {}).get(library.name, [])]


def same_series(a: str, b: str) -> bool:
    """Whether two versions of torch have the same C++ interface: equal but for the last number."""
    return a.split("+")[0].split(".")[:2] == b.split("+")[0].split(".")[:2]
