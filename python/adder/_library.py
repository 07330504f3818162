"""Finds and loads the C++ libraries."""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path

import torch

from ._built_for import (LIBRARY, MODELS_LIBRARY, brought_for, same_series, torch_built_for, torch_folder_of,
                         torch_version_in)

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


def _is_loaded(operator: str) -> bool:
    return operator in torch._C._dispatch_get_all_op_names()


def check_torch(library: Path, installed: str = torch.__version__) -> None:
    """Raises ImportError where the library was built for another series of torch than the installed one."""
    wanted = torch_built_for(library)
    if wanted and not same_series(wanted, installed):
        raise ImportError(f"adder: {library} was built for torch {wanted}, but torch {installed} is installed; install "
                          f"torch {'.'.join(wanted.split('.')[:2])}, or install adder again from its source")


def _load_into_torch(library: Path) -> None:
    try:
        for needed in brought_for(library):  # loaded first, they are found by name
            ctypes.CDLL(str(needed))
        torch.ops.load_library(str(library))
    except OSError as error:
        why = str(error.__cause__ or error)  # torch's own text has the path alone
        missing = re.match(r"(lib[^/:]+\.so[^/:]*): cannot open shared object file", why)
        if missing:
            raise ImportError(f"adder: {library} needs {missing[1]}, which this system does not have; on Debian and "
                              f"Ubuntu: apt install {_debian_package(missing[1])}") from error
        folder = torch_folder_of(library)
        linked = torch_built_for(library) or (torch_version_in(folder) if folder else None)
        raise ImportError(f"adder: {library} cannot be loaded into torch {torch.__version__} (built for torch "
                          f"{linked or 'of unknown version'}): {why}") from error


def _debian_package(library: str) -> str:
    """libzip4 for libzip.so.4: the rule by which Debian names them."""
    name, _, version = library.partition(".so.")
    if name == "libz":
        return "zlib1g"
    return name + ("-" if name[-1].isdigit() else "") + version


def load() -> Path | None:
    """Registers torch.ops.adder; the path of the library, or None where the operators were there already."""
    if _is_loaded("adder::selective_scan"):
        return None
    library = find_library()
    check_torch(library)
    _load_into_torch(library)
    return library


def load_models() -> None:
    """Registers adder::read_published and adder::write_published, from a library beside that of the operators."""
    if _is_loaded("adder::read_published"):
        return
    library = find_library().with_name(MODELS_LIBRARY)
    if not library.is_file():
        raise ImportError(f"adder: published models are read and written by {library}, which is not there; build it "
                          "with 'make build'")
    _load_into_torch(library)
