"""What may import what: the rooms of docs/architecture.md, held against the code."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib import metadata
from pathlib import Path

import pytest

import naflex_export as nx

ROOT = Path(nx.__file__).parent
MODULES = {
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}

SERVING = ("serving", "batch", "errors", "grid", "precision", "version")
"""All of the package that a loaded artifact may import."""

SERVING_LIBRARIES = {"torch", "numpy", "onnxruntime", "tensorrt", "tensorrt_rtx", "tokenizers"}


def imported(path: Path) -> Iterator[str]:
    """Yield what a file imports, wherever in it: modules, and names that are modules themselves."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            inner = [f"{node.module}.{name.name}" for name in node.names]
            yield from (name if name in MODULES else str(node.module) for name in inner)


def test_no_file_imports_the_package_from_inside() -> None:
    assert [
        name for name, path in MODULES.items() if name != "naflex_export" and "naflex_export" in imported(path)
    ] == []


def test_no_files_import_each_other_in_a_circle() -> None:
    """Wherever in a file: an import inside of a function, or for types alone, would hide a circle and not end it."""
    graph = {
        name: {found for found in imported(path) if found in MODULES} - {name, "naflex_export"}
        for name, path in MODULES.items()
    }
    assert list(TopologicalSorter(graph).static_order())


def test_serving_imports_nothing_of_the_building_side() -> None:
    for name, path in MODULES.items():
        if name.startswith("naflex_export.serving"):
            for found in imported(path):
                top, *inner = found.split(".")
                allowed = inner[0] in SERVING if top == "naflex_export" else top in SERVING_LIBRARIES
                assert allowed or top in sys.stdlib_module_names, f"{name} imports {found}"


EMBED_LIBRARIES = {"numpy", "PIL", "pyarrow"}
EMBED_WITH_TORCH = ("naflex_export.embed.run_arrays",)
"""Where torch may be imported, once an artifact of another target than onnx is opened."""


def test_embed_imports_no_torch_and_nothing_of_the_building_side() -> None:
    for name, path in MODULES.items():
        if name.startswith("naflex_export.embed") and name not in EMBED_WITH_TORCH:
            for found in imported(path):
                top, *inner = found.split(".")
                allowed = inner[0] in (*SERVING, "embed") if top == "naflex_export" else top in EMBED_LIBRARIES
                assert allowed or top in sys.stdlib_module_names, f"{name} imports {found}"


SERVER_LIBRARIES = {"fastapi", "orjson", "prometheus_client", "starlette", "uvicorn"}


def test_only_the_server_imports_the_packages_of_http() -> None:
    found = {name for name, path in MODULES.items() if {one.split(".")[0] for one in imported(path)} & SERVER_LIBRARIES}
    assert found and all(name.startswith("naflex_export.server") for name in found)


def test_public_names_are_all_there() -> None:
    for name in nx.__all__:
        assert getattr(nx, name).__name__ == name or isinstance(getattr(nx, name), type)
    assert set(nx.__all__) <= set(dir(nx)) and nx.__version__ == metadata.version("naflex_export")
    with pytest.raises(AttributeError, match="has no attribute 'no_such_name'"):
        nx.no_such_name  # noqa: B018
    for name in nx.__all__:
        assert f"naflex_export.{name}" not in MODULES, "importing this module would hide the function of its name"


MEASURE = """
import sys, time
before = set(sys.modules)
{code}
found = {{name.partition(".")[0] for name in set(sys.modules) - before}}
print(*sorted(found - set(sys.stdlib_module_names) - {{"naflex_export"}}))
print(time.process_time())
"""


def measured(code: str) -> tuple[list[str], float]:
    """Return the libraries that some code imports in a process of its own, and the CPU seconds that it takes."""
    done = subprocess.run([sys.executable, "-c", MEASURE.format(code=code)], capture_output=True, text=True, check=True)
    *_, libraries, seconds = done.stdout.splitlines()
    return libraries.split(), float(seconds)


def test_importing_the_package_imports_no_library() -> None:
    assert measured("import naflex_export") == ([], pytest.approx(0, abs=1))


@pytest.mark.parametrize("command", ["export", "gate", "bench", "embed", "search", "classify", "plan", "serve"])
def test_help_imports_click_alone_and_takes_no_second(command: str) -> None:
    module = f"naflex_export.cli.{command}"
    code = f"from {module} import {command}_command as run; run(['--help'], standalone_mode=False)"
    libraries, seconds = measured(code)
    assert libraries == ["click"] and seconds < 1


OTHERS_SAY = {
    "forward": "what a module takes is its model's input format",
}
"""Functions without Args, and why."""

NO_ARGS = re.compile(r"\.cli\.|\.triton_kernels$")
"""Files whose functions have none: commands have options; kernels take pointers and sizes, as the first lines say."""


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    """Yield a file's public functions and the public methods of its public classes."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from functions(node)
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node


def test_functions_of_three_parameters_say_what_each_is() -> None:
    """Those without a docstring do what a protocol or a base class says."""
    silent = []
    for name, path in MODULES.items():
        for function in functions(ast.parse(path.read_text(encoding="utf-8"))):
            given, said = function.args, ast.get_docstring(function) or "Args:"
            names = [one.arg for one in [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg] if one]
            count = len({*names, *([given.kwarg.arg] if given.kwarg else [])} - {"self", "cls"})
            told = "Args:" in said or "rguments as of" in said or function.name in OTHERS_SAY or NO_ARGS.search(name)
            silent += [] if count < 3 or told else [f"{name}.{function.name}"]
    assert silent == []
