"""Finds and loads the operator library."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import torch

from ._built_for import LIBRARY, same_series, torch_built_for, torch_folder_of, torch_version_in

PACKAGED = Path(__file__).parent / "lib"
SOURCE_TREE = Path(__file__).parents[2] / "build/release/lib"


def find_library() -> Path:
    """ADDER_OPS_LIBRARY where it is set, else the library that a wheel carries, else that of the source tree's
    build."""
    named = os.environ.get("ADDER_OPS_LIBRARY")
    if named:
        if not Path(named).is_file():
            raise ImportError(f"adder: ADDER_OPS_LIBRARY must name the operator library, got {named}, which is no file")
        return Path(named)
    for folder in (PACKAGED, SOURCE_TREE):
        if (folder / LIBRARY).is_file():
            return folder / LIBRARY
    raise ImportError(
        f"adder: no operator library: looked for {LIBRARY} in {PACKAGED} and {SOURCE_TREE}; build it with "
        "'make build', or name it in ADDER_OPS_LIBRARY")


def _is_loaded() -> bool:
    return any(name.startswith("adder::selective_scan") for name in torch._C._dispatch_get_all_op_names())


def check_torch(library: Path, installed: str = torch.__version__) -> None:
    """Raises ImportError where the library was built for another series of torch than the installed one."""
    wanted = torch_built_for(library)
    if wanted and not same_series(wanted, installed):
        raise ImportError(f"adder: {library} was built for torch {wanted}, but torch {installed} is installed; install "
                          f"torch {'.'.join(wanted.split('.')[:2])}, or install adder again from its source")


def load() -> Path | None:
    """Registers torch.ops.adder; the path of the library, or None where the operators were there already."""
    if _is_loaded():
        return None
    library = find_library()
    check_torch(library)
    # What the library needs besides torch lies beside it; loaded first, it is found by name.
    for dependency in sorted(library.parent.glob("*.so.*")):
        ctypes.CDLL(str(dependency), mode=ctypes.RTLD_GLOBAL)
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        folder = torch_folder_of(library)
        linked = torch_built_for(library) or (torch_version_in(folder) if folder else None)
        raise ImportError(f"adder: {library} cannot be loaded into torch {torch.__version__} (built for torch "
                          f"{linked or 'of unknown version'}): {error}") from error
    return library
