"""The build backend of pyproject.toml (PEP 517, PEP 660), of the standard library alone: no download decides what is
built.

A wheel is python/adder with lib/: the libraries of operators and of models, what these need besides torch, and a record
of the torch they were built for. They are those in build/release/lib, or the one that ADDER_OPS_LIBRARY names and the
other beside it; without these CMake builds them.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

try:
    import tomllib
except ImportError:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "python/adder"
TAG = "py3-none-linux_x86_64"
# What every Linux with this glibc has, or torch brings. Anything else that a library needs travels with it.
SYSTEM = re.compile(r"lib(c|m|dl|rt|pthread|util|z|gcc_s|stdc\+\+)\.so|ld-linux|linux-vdso")
TORCH = re.compile(r"lib(torch|c10|gomp|cu|nv|nccl|shm)")


def _built_for():
    spec = importlib.util.spec_from_file_location("_built_for", PACKAGE / "_built_for.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _installed_torch() -> Path | None:
    """The installed torch package, also from an isolated build, whose search path has no site-packages."""
    folders = [os.environ.get("ADDER_TORCH")]
    folders += [str(Path(sysconfig.get_path(kind)) / "torch") for kind in ("platlib", "purelib")]
    folders += [str(ROOT / f".venv/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages/torch")]
    return next((Path(folder) for folder in folders if folder and (Path(folder) / "lib/libtorch_cpu.so").is_file()),
                None)


def _libraries() -> tuple[list[Path], str]:
    """The libraries of operators and of models, and the version of torch that they were built for."""
    records = _built_for()
    installed = _installed_torch()
    library = Path(os.environ.get("ADDER_OPS_LIBRARY") or ROOT / "build/release/lib" / records.LIBRARY)
    if not library.is_file() or not library.with_name(records.MODELS_LIBRARY).is_file():
        if installed is None:
            raise RuntimeError(
                "adder: no built libraries and no torch to build them with: 'pip install torch' first, or name "
                "its folder in ADDER_TORCH")
        print(f"adder: building the libraries with torch in {installed}", file=sys.stderr)
        library = ROOT / "build/release/lib" / records.LIBRARY
        for command in (["cmake", "--preset", "release", f"-DADDER_TORCH={installed}"],
                        ["cmake", "--build", "--preset", "release", "--target", "adder_ops", "adder_models"]):
            subprocess.run(command, cwd=ROOT, check=True)
    folder = records.torch_folder_of(library)
    version = records.torch_version_in(folder) if folder else None
    if version is None:
        raise RuntimeError(
            f"adder: cannot tell which torch {library} was built for: it was linked with {folder}, which is "
            "not there any more; build it again")
    here = records.torch_version_in(installed) if installed else None
    if here and not records.same_series(version, here):
        raise RuntimeError(
            f"adder: {library} was built for torch {version}, but torch {here} is installed; remove it, so "
            "that it is built again")
    return [library, library.with_name(records.MODELS_LIBRARY)], version


def _bundled(library: Path) -> list[Path]:
    """The shared libraries that it needs from this system, besides torch's, ours and those of any Linux."""
    found = []
    for line in subprocess.run(["ldd", library], capture_output=True, text=True, check=True).stdout.splitlines():
        name, _, rest = line.strip().partition(" ")
        path = rest.removeprefix("=> ").split(" (")[0]
        if SYSTEM.search(name) or TORCH.match(name) or name.startswith("libadder") or "site-packages" in path:
            continue
        if not Path(path).is_file():
            raise RuntimeError(f"adder: {library} needs {name}, which this system does not have")
        found.append(Path(path))
    return sorted(found)


def _version() -> str:
    return re.search(r"^project\(adder VERSION (\S+)", (ROOT / "CMakeLists.txt").read_text(), re.M)[1]


def _metadata(torch_version: str) -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    series = ".".join(torch_version.split("+")[0].split(".")[:2])
    lines = ["Metadata-Version: 2.4", f"Name: {project['name']}", f"Version: {_version()}",
             f"Summary: {project['description']}", f"License-Expression: {project['license']}", "License-File: LICENSE",
             f"Requires-Python: {project['requires-python']}", f"Requires-Dist: torch=={series}.*"]
    lines += [f"Classifier: {classifier}" for classifier in project["classifiers"]]
    for extra, needed in project["optional-dependencies"].items():
        lines += [f"Provides-Extra: {extra}", *(f"Requires-Dist: {name}; extra == '{extra}'" for name in needed)]
    lines += ["Description-Content-Type: text/markdown", "", (ROOT / project["readme"]).read_text()]
    return "\n".join(lines)


def _write_wheel(folder: str, contents: dict[str, bytes], torch_version: str) -> str:
    name = f"adder_ssm-{_version()}"
    info = f"{name}.dist-info"
    contents |= {
        f"{info}/METADATA": _metadata(torch_version).encode(),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: adder_wheel\nRoot-Is-Purelib: false\nTag: {TAG}\n".encode(),
        f"{info}/licenses/LICENSE": (ROOT / "LICENSE").read_bytes()
    }
    record = io.StringIO()
    wheel = Path(folder) / f"{name}-{TAG}.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as out:
        for path, data in sorted(contents.items()):
            entry = zipfile.ZipInfo(path)  # a fixed date: equal contents, equal wheel
            entry.external_attr = (0o755 if ".so" in path else 0o644) << 16
            out.writestr(entry, data, zipfile.ZIP_DEFLATED)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            record.write(f"{path},sha256={digest},{len(data)}\n")
        record.write(f"{info}/RECORD,,\n")
        out.writestr(zipfile.ZipInfo(f"{info}/RECORD"), record.getvalue(), zipfile.ZIP_DEFLATED)
    return wheel.name


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    libraries, torch_version = _libraries()
    contents = {path.relative_to(PACKAGE.parent).as_posix(): path.read_bytes()
                for path in sorted([*PACKAGE.rglob("*.py"), PACKAGE / "py.typed"]) if "lib" != path.parent.name}
    brought = {library.name: _bundled(library) for library in libraries}
    for path in [*libraries, *(path for paths in brought.values() for path in paths)]:
        contents[f"adder/lib/{path.name}"] = path.read_bytes()
    names = {name: [path.name for path in paths] for name, paths in brought.items()}
    record = {"torch": torch_version, "brought": names}
    contents[f"adder/lib/{_built_for().RECORD}"] = json.dumps(record).encode()
    return _write_wheel(wheel_directory, contents, torch_version)


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    """Points at python/; the library is found in the source tree."""
    _, torch_version = _libraries()
    return _write_wheel(wheel_directory, {"adder_ssm.pth": f"{PACKAGE.parent}\n".encode()}, torch_version)


def build_sdist(sdist_directory, config_settings=None):
    """What git tracks."""
    name = f"adder_ssm-{_version()}"
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True,
                             check=True).stdout.split("\n")
    archive = Path(sdist_directory) / f"{name}.tar.gz"
    with tarfile.open(archive, "w:gz", format=tarfile.PAX_FORMAT) as out:
        for path in filter(None, tracked):
            out.add(ROOT / path, f"{name}/{path}", recursive=False)
        metadata = (f"Metadata-Version: 2.4\nName: adder-ssm\nVersion: {_version()}\nDynamic: Requires-Dist\n").encode()
        entry = tarfile.TarInfo(f"{name}/PKG-INFO")
        entry.size = len(metadata)
        out.addfile(entry, io.BytesIO(metadata))
    return archive.name
