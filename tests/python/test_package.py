"""The Python package: loading and the wheel."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

import adder
from adder import _built_for, _library

ROOT = Path(__file__).parents[2]


def run(script, path, cwd="/", **environment):
    kept = {key: value for key, value in os.environ.items() if key != "ADDER_OPS_LIBRARY"}
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=cwd,
                          env={**kept, "PYTHONPATH": str(path), **environment})


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    sys.path.insert(0, str(ROOT / "tools/packaging"))
    import adder_wheel

    folder = tmp_path_factory.mktemp("wheel")
    return folder / adder_wheel.build_wheel(str(folder))


def test_wheel(wheel, tmp_path):
    assert wheel.name == f"adder_ssm-{adder.__version__}-py3-none-linux_x86_64.whl"
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path)
    for line in (tmp_path / f"adder_ssm-{adder.__version__}.dist-info/RECORD").read_text().splitlines():
        assert (tmp_path / line.rsplit(",", 2)[0]).is_file()
    script = """
import adder, torch
assert not torch.cuda.is_available()
model = adder.MambaLM(d_model=8, vocab_size=8)
model.save_pretrained("model")
y, state = adder.MambaLM.from_pretrained("model")(torch.tensor([[1, 2]]))
print(adder.library, *{line.split()[-1] for line in open("/proc/self/maps") if ".so" in line})
"""
    out = run(script, tmp_path, cwd=tmp_path, CUDA_VISIBLE_DEVICES="")
    assert out.returncode == 0, out.stderr
    loaded = set(out.stdout.split())
    ours = {str(path) for path in (tmp_path / "adder/lib").glob("libadder*.so")}
    assert len(ours) == 2 and {path for path in loaded if "libadder" in path} == ours
    assert {str(path) for path in (tmp_path / "adder/lib").glob("*.so.*")} <= loaded

    (tmp_path / "adder/lib/built_for.json").write_text(json.dumps({"torch": "1.13.1"}))
    out = run("import adder", tmp_path)
    assert f"was built for torch 1.13.1, but torch {torch.__version__} is installed; install torch 1.13," in out.stderr
    (tmp_path / "adder/lib/built_for.json").unlink()
    (tmp_path / "adder/lib/libadder_ops.so").write_bytes(b"not a library")
    assert f"cannot be loaded into torch {torch.__version__} (built for torch of unknown version)" in run(
        "import adder", tmp_path).stderr
    (tmp_path / "adder/lib/libadder_ops.so").unlink()
    assert "adder: no operator library: looked for libadder_ops.so in" in run("import adder", tmp_path).stderr
    assert "ADDER_OPS_LIBRARY must name the operator library, got /nowhere" in run(
        "import adder", tmp_path, ADDER_OPS_LIBRARY="/nowhere").stderr


def test_pip_builds_the_same_wheel_in_isolation_and_without_an_index(wheel, tmp_path):
    subprocess.run([sys.executable, "-m", "pip", "wheel", str(ROOT), "--no-index", "--no-deps", "-w", str(tmp_path)],
                   capture_output=True, check=True)
    assert (tmp_path / wheel.name).read_bytes() == wheel.read_bytes()


def test_a_missing_library_is_told_by_name(tmp_path):
    def link(name, *needed):
        subprocess.run(["cc", "-shared", "-o", tmp_path / name, f"-Wl,-soname,{name},--no-as-needed",
                        *(tmp_path / other for other in needed), "-x", "c", "/dev/null"], check=True)

    def error():
        out = run("import adder; adder.MambaLM.from_pretrained('/nowhere')", ROOT / "python",
                  ADDER_OPS_LIBRARY=str(tmp_path / "libadder_ops.so"))
        return out.stderr.strip().split("\n")[-1]

    (tmp_path / "libadder_ops.so").symlink_to(os.environ["ADDER_OPS_LIBRARY"])
    models = tmp_path / "libadder_models.so"
    assert error() == f"ImportError: adder: published models are read and written by {models}, which is not there; " \
                      "build it with 'make build'"
    for name, package in (("libgone.so.4", "libgone4"), ("libz.so.9", "zlib1g"), ("libfmt2.so.10", "libfmt2-10")):
        link(name)
        link(models.name, name)
        (tmp_path / name).unlink()
        assert error() == f"ImportError: adder: {models} needs {name}, which this system does not have; on Debian and " \
                          f"Ubuntu: apt install {package}"


def test_the_wheel_asks_for_the_torch_that_it_was_built_for(wheel):
    with zipfile.ZipFile(wheel) as file:
        info = f"adder_ssm-{adder.__version__}.dist-info"
        metadata = file.read(f"{info}/METADATA").decode()
        record = json.loads(file.read("adder/lib/built_for.json"))
    series = ".".join(torch.__version__.split(".")[:2])
    assert f"Requires-Dist: torch=={series}.*\n" in metadata and _built_for.same_series(
        record["torch"], torch.__version__)


def test_versions():
    for a, b, same in (("2.11.0", "2.11.1+cu130", True), ("2.11.0", "2.12.0", False), ("2.1.0", "2.11.0", False)):
        assert _built_for.same_series(a, b) == same
    library = Path(os.environ["ADDER_OPS_LIBRARY"])
    assert _built_for.torch_version_in(_built_for.torch_folder_of(library)) == torch.__version__
    assert _library.find_library() == library and adder.library is None  # conftest had loaded it
    version = (ROOT / "adder/core/version.h").read_text().split('kVersion = "')[1].split('"')[0]
    assert adder.__version__ == version
