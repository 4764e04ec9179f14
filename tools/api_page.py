"""Write docs/api.md: every public name, its signature and what it says of itself.

python tools/api_page.py [--check]
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import naflex_export as nx
from naflex_export.export_request import ExportRequest

PAGE = Path(__file__).parent.parent / "docs" / "api.md"

HEAD = """# API

Written by `python tools/api_page.py` from the docstrings of what `import naflex_export as nx` offers. Every error is a
`NaflexExportError` and names what was given, what was expected and what to do. `ExportRequest` is in
`naflex_export.export_request`: what `nx.export` takes by name.
"""


def page() -> str:
    """Return the page."""
    public = {name: getattr(nx, name) for name in sorted(nx.__all__, key=str.lower)}
    functions = {name: value for name, value in public.items() if inspect.isfunction(value)}
    functions["ray.embed"] = nx.ray.embed
    errors = {name: value for name, value in public.items() if name not in functions and issubclass(value, Exception)}
    classes = {name: value for name, value in public.items() if name not in functions and name not in errors}
    parts = [HEAD, "## Functions", *(_function(f"nx.{name}", value, "###") for name, value in functions.items())]
    classes["ExportRequest"] = ExportRequest
    parts += ["## Classes", *(part for name, value in sorted(classes.items()) for part in _class(name, value))]
    parts += ["## Errors", "\n".join(f"- `{name}`: {_text(value)}" for name, value in errors.items())]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


RESULTS = ("Artifact", "CompareReport", "CompiledModel", "GateReport", "NumpyRunner", "PatchSizesRunner", "Runner")
RESULTS += ("TextEncoder",)
"""Classes that functions return and nobody calls: their own signatures are left out."""


def _class(name: str, value: type) -> Iterator[str]:
    yield f"### {name}\n\n{_text(value)}" if name in RESULTS else _function(name, value, "###")
    for member in sorted(vars(value)):
        found = inspect.getattr_static(value, member)
        function = found.__func__ if isinstance(found, classmethod | staticmethod) else found
        if member.startswith("_") and member not in ("__call__", "__getitem__"):
            continue
        if inspect.isfunction(function) and function.__doc__:
            yield _function(f"{name}.{member}", function, "####")
        elif isinstance(found, property):
            yield f"#### {name}.{member}\n\n{_text(found)}"


def _function(name: str, function: Any, level: str) -> str:
    signature = str(_plain(inspect.signature(function)))
    signature = signature.replace("(self, ", "(").replace("(self)", "()").replace("(cls, ", "(")
    lines = f"{name}{signature.removesuffix(' -> None') if inspect.isclass(function) else signature}"
    if len(lines) > 100:
        lines = re.sub(r"\((.*)\)( -> .*)?$", _one_a_line, lines, count=1, flags=re.DOTALL)
    return f"{level} {name}\n\n```python\n{lines}\n```\n\n{_text(function)}"


class _Written(str):
    """An annotation or a default as it is written in code, without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _plain(signature: inspect.Signature) -> inspect.Signature:
    """Return a signature whose annotations and defaults read as they do in code."""
    parameters = [
        one.replace(annotation=_annotation(one.annotation), default=_default(one.default))
        for one in signature.parameters.values()
    ]
    return inspect.Signature(parameters, return_annotation=_annotation(signature.return_annotation))


def _annotation(value: Any) -> Any:
    value = getattr(value, "__forward_arg__", value)
    return _Written(value) if isinstance(value, str) else value


def _default(value: Any) -> Any:
    if inspect.isbuiltin(value):
        return _Written(f"{value.__module__}.{value.__name__}")
    return _Written("...") if repr(value) == "<factory>" else value


def _one_a_line(found: re.Match[str]) -> str:
    """Return the parameters of a signature, one a line."""
    depth, parameters = 0, [""]
    for character in found[1]:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parameters.append("")
        else:
            parameters[-1] += character
    return "(\n" + "".join(f"    {parameter.strip()},\n" for parameter in parameters) + ")" + (found[2] or "")


def _text(value: Any) -> str:
    """Return a docstring in Markdown: its sections as lists."""
    lines: list[str] = []
    for line in (inspect.getdoc(value) or "").splitlines():
        if re.fullmatch(r"(Args|Attributes|Returns|Raises):", line):
            lines += [f"**{line[:-1]}**", ""]
        elif found := re.fullmatch(r"    (\w[\w, ]*): (.*)", line):
            lines.append(f"- `{found[1]}`: {found[2]}")
        else:
            lines.append(re.sub(r"^ {4}(?= )", "", line))
    return "\n".join(lines)


def main() -> None:
    """Write the page, or say whether it is current."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where the page is not current")
    if parser.parse_args().check:
        sys.exit(PAGE.read_text(encoding="utf-8") != page())
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
