"""The documentation: links lead somewhere, options and names exist, errors are answered, and the site builds."""

from __future__ import annotations

import ast
import html.parser
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import click
import pytest

import naflex_export as nx
from naflex_export.cli import supervised

ROOT = Path(nx.__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMED = [page.relative_to(ROOT).as_posix() for page in PAGES]


def without_code(text: str) -> str:
    return re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)


def headings(page: Path) -> set[str]:
    """Return the anchors of a page, as GitHub and the site make them."""
    found = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


def blocks(page: Path, language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [text for named, text in found if named == language]


@pytest.mark.parametrize("name", NAMED)
def test_links_lead_to_a_file_and_a_heading(name: str) -> None:
    page = ROOT / name
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text(encoding="utf-8"))):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = unquote(target).partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{name} links to {target}"
        assert not anchor or anchor in headings(there), f"{name} links to {target}: there is no such heading"
        inside = page.name == "README.md" or there.is_relative_to(ROOT / "docs")
        assert inside, f"{name} links to {target}, which the site does not hold"


def commands(page: Path) -> Iterator[list[str]]:
    """Return the naflex commands that a page shows, each as its words."""
    for text in [*blocks(page, "sh"), *blocks(page, "")]:
        for line in text.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|\|", line.partition("  #")[0]):
                if re.match(r"\s*(naflex-[a-z]+|naflex [a-z]+) ", part):
                    yield shlex.split(part)


def parser_of(words: list[str]) -> click.Command:
    name, rest = (words[1], words[2:]) if words[0] == "naflex" else (words[0].removeprefix("naflex-"), words[1:])
    assert name in supervised.COMMANDS, f"there is no naflex-{name}"
    module = importlib.import_module(f"naflex_export.cli.{name}")
    inner: dict[str, click.Command] = getattr(module, "COMMANDS", {})
    return inner[rest[0]] if rest and rest[0] in inner else getattr(module, f"{name}_command")


@pytest.mark.parametrize("name", NAMED)
def test_commands_have_the_options_that_are_shown(name: str) -> None:
    for words in commands(ROOT / name):
        known = {option for parameter in parser_of(words).params for option in parameter.opts}
        given = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert given <= known | {"--help", "--version"}, f"{name}: {' '.join(words)}"


@pytest.mark.parametrize("name", NAMED)
def test_python_snippets_parse_and_name_what_is_public(name: str) -> None:
    for text in blocks(ROOT / name, "python") if name != "docs/api.md" else ():  # that one shows signatures
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "nx":
                assert hasattr(nx, node.attr), f"{name}: nx.{node.attr}"


EXTRAS = re.compile(r"(?:naflex_export|\.)\[([a-z,]+)\]")


def installed(text: str) -> list[str]:
    """Return what the `pip install` commands of a text take: their words."""
    parts = [part.partition("pip install ")[2] for part in re.split("&&|\n", text)]
    return [word for part in parts for word in shlex.split(part, comments=True)]


@pytest.mark.parametrize("name", NAMED)
def test_installs_take_the_package_from_where_it_is(name: str) -> None:
    """No index holds it: a checkout does. In text, `naflex_export[EXTRA]` adds to what is installed already."""
    page = ROOT / name
    shown = installed("\n".join([*blocks(page, "sh"), *blocks(page, "")]))
    assert not [word for word in shown if word.startswith("naflex_export")]
    assert "naflex_export" not in installed("\n".join(re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8"))))


def test_the_extras_that_are_named_exist() -> None:
    declared = set(PROJECT["project"]["optional-dependencies"])
    for path in [*PAGES, *(ROOT / "naflex_export").rglob("*.py"), *(ROOT / "tools").glob("*.py")]:
        for named in EXTRAS.findall(path.read_text(encoding="utf-8")):
            assert set(named.split(",")) <= declared, f"{path.name}: [{named}]"


def test_errors_name_an_answer_and_answers_an_error() -> None:
    package = ROOT / "naflex_export"
    text = "".join(path.read_text(encoding="utf-8") for path in package.rglob("*.py"))
    named = set(re.findall(r"docs/errors\.md#([a-z0-9-]+)", text))
    title = "ten-errors-that-people-meet"
    assert named == headings(ROOT / "docs" / "errors.md") - {title} and len(named) == 10


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 120


class Links(html.parser.HTMLParser):
    """Links and anchors of a page of the site."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.links.append(value)
            if name in ("id", "name") and value:
                self.anchors.add(value)


def unformatted(page: str) -> list[str]:
    """Return lists, tables and blocks that follow a line of text: GitHub formats them, the site does not."""
    return [
        line
        for paragraph in re.findall(r"<p>(.*?)</p>", page, re.DOTALL)
        for line in paragraph.splitlines()[1:]
        if re.match(r"- |\d\. |\| |```", line)
    ]


@pytest.mark.skipif(importlib.util.find_spec("zensical") is None, reason="zensical is of the extra 'docs'")
def test_the_site_builds_without_warnings_and_its_links_resolve(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "warning" not in (done.stdout + done.stderr).lower(), done.stdout + done.stderr
    site = tmp_path / "site"
    pages = {path.resolve(): Links(path) for path in site.rglob("*.html")}
    for path, page in pages.items():
        stranded = unformatted(path.read_text(encoding="utf-8"))
        assert not stranded, f"{path.relative_to(site)}: leave an empty line ahead of {stranded}"
        for link in page.links:
            if re.match(r"[a-z]+:|//", link) or path.name == "404.html":
                continue
            target, _, anchor = unquote(link).partition("#")
            there = (path.parent / target.partition("?")[0]).resolve() if target else path
            there = there / "index.html" if there.is_dir() else there
            assert there.exists(), f"{path.relative_to(site)} links to {link}"
            if anchor and there in pages and not anchor.startswith("__"):
                assert anchor in pages[there].anchors, f"{path.relative_to(site)} links to {link}"
    in_nav = set(re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE))
    assert {page.relative_to(ROOT / "docs").as_posix() for page in PAGES[1:]} == in_nav
