"""A shell's Tab key, pressed in bash, zsh and fish, at a command that is installed as `naflex` and as `naflex-gate`."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import artifacts
import pytest

from naflex_export.cli.supervised import COMMANDS

ROOT = Path(__file__).parents[2]
SCRIPT = """#!{python}
import sys
sys.path.insert(0, {root!r})
from naflex_export.cli.supervised import {main} as main
main()
"""

TYPED = [
    ("naflex exp", "naflex export "),
    ("naflex help pl", "naflex help plan "),
    ("naflex export --ta", "naflex export --target "),
    ("naflex export --target onnx,t", "naflex export --target onnx,trt"),
    ("naflex export --target=ao", "naflex export --target=aot"),
    ("naflex export naflexvit_base_patch16_sig", "naflex export naflexvit_base_patch16_siglip"),
    ("naflex export --weights ran", "naflex export --weights random"),
    ("naflex gate ju", "naflex gate judge "),
    ("naflex gate art", "naflex gate artifact-of-mine"),
    ("naflex-gate pack --we", "naflex-gate pack --weights "),
    ("naflex-gate --quick --thorough --rep", "naflex-gate --quick --thorough --report "),
    ("naflex-plan --no-up", "naflex-plan --no-upscale "),
    ("naflex-gate --weights=art", "naflex-gate --weights=artifact-of-mine"),
    ("naflex bench artifact-of-mine --gr", "naflex bench artifact-of-mine --grids "),
]
"""What is typed ahead of Tab, and the line that comes of it."""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to work in, with the commands beside it as an installation has them."""
    folder = tmp_path_factory.mktemp("installed")
    (folder / "bin").mkdir()
    for name in ("", *COMMANDS):
        program = folder / "bin" / (f"naflex-{name}" if name else "naflex")
        main = f"{name or 'naflex'}_main"
        program.write_text(SCRIPT.format(python=sys.executable, root=str(ROOT), main=main))
        program.chmod(0o755)
    (folder / "here").mkdir()
    artifacts.fill(folder / "here" / "artifact-of-mine")
    return folder


def environment(installed: Path) -> dict[str, str]:
    return {
        "PATH": f"{installed / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(installed),
        "TERM": "dumb",
        "LC_ALL": "C.UTF-8",
    }


class Terminal:
    """A shell in a pseudo-terminal."""

    def __init__(self, words: list[str], installed: Path) -> None:
        self.process, self.screen = pty.fork()
        if self.process == 0:
            os.chdir(installed / "here")
            os.execvpe(words[0], words, environment(installed))
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self.screen, text.encode())

    def until(self, expected: str) -> str:
        """Return what came up to a text; fail where it does not come."""
        ends = time.monotonic() + 30
        while expected not in self.seen:
            if time.monotonic() > ends or not select.select([self.screen], [], [], 1)[0]:
                if time.monotonic() < ends:
                    continue
                pytest.fail(f"{expected!r} does not come: {self.seen[-2000:]!r}")
            self.seen += _plain(os.read(self.screen, 65536).decode(errors="replace"))
        before, _, self.seen = self.seen.partition(expected)
        return before

    def close(self) -> None:
        os.close(self.screen)
        os.waitpid(self.process, 0)


def _plain(text: str) -> str:
    """Return a text as a screen has it, without what moves the cursor or rings the bell."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\x07", "", text)


@contextmanager
def shell(words: list[str], ready: str, installed: Path) -> Iterator[Terminal]:
    if shutil.which(words[0]) is None:
        pytest.skip(f"{words[0]} is not installed")
    terminal = Terminal(words, installed)
    try:
        terminal.type(f"{ready}; echo rea''dy\n")
        terminal.until("ready")
        yield terminal
    finally:
        terminal.close()


SHELLS = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], "PS1=; bind 'set enable-bracketed-paste off'"),
    "zsh": (
        ["zsh", "-f", "-i"],
        "PS1= RPS1=; unsetopt zle_bracketed_paste prompt_sp; autoload -U compinit; compinit -u",
    ),
}
KILL_LINE = "\x15"


@pytest.mark.parametrize("name", SHELLS)
def test_tab_ends_what_was_begun(name: str, installed: Path) -> None:
    """A word, a comma's next, what follows a `=`, a folder beside words, and all of it behind `naflex` too."""
    words, ready = SHELLS[name]
    source = f'eval "$(_NAFLEX_COMPLETE={name}_source naflex)"'
    with shell(words, f"{ready}; {source}", installed) as terminal:
        for typed, comes in TYPED:
            terminal.type(f"{typed}\t")
            terminal.until(comes)
            terminal.type(KILL_LINE)


def test_tab_ends_what_was_begun_in_fish(installed: Path) -> None:
    """Fish says what it would complete, if asked."""
    if shutil.which("fish") is None:
        pytest.skip("fish is not installed")
    asked = "\n".join(f'echo "|"; complete -C "{typed}"' for typed, _ in TYPED)
    script = f"_NAFLEX_COMPLETE=fish_source naflex | source\n{asked}\n"
    words = ["fish", "--no-config", "--command", script]
    done = subprocess.run(
        words, capture_output=True, text=True, check=True, cwd=installed / "here", env=environment(installed)
    )
    answers = done.stdout.split("|\n")[1:]
    assert not done.stderr
    for (typed, comes), answer in zip(TYPED, answers, strict=True):
        ends = [line.partition("\t")[0] for line in answer.splitlines()]
        assert comes.split()[-1].rpartition("=")[2] in [end.rstrip("/").rpartition("=")[2] for end in ends], (
            typed,
            ends,
        )


ASKED = """
import json, os, sys, time
from naflex_export.cli.supervised import {main}_main as main

os.environ |= json.loads(sys.argv.pop())
try:
    main()
except SystemExit as end:
    code = end.code
there = sorted({{"torch", "timm", "numpy", "rich", "PIL"}} & set(sys.modules))
print(json.dumps([code, there, time.process_time()]), file=sys.stderr)
"""


def asked(program: str, line: str) -> tuple[list[str], float]:
    """Return what a program says to bash, and the CPU seconds that it takes; it may import no library but click."""
    main = program.removeprefix("naflex-")
    variable = f"_{program.replace('-', '_').upper()}_COMPLETE"
    words = {variable: "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
    done = subprocess.run(
        [sys.executable, "-c", ASKED.format(main=main), json.dumps(words)], capture_output=True, text=True, check=True
    )
    code, libraries, seconds = json.loads(done.stderr)
    assert code == 0 and libraries == []
    return done.stdout.split(), seconds


@pytest.mark.parametrize(
    ("program", "line", "said"),
    [
        ("naflex", "naflex help ", [f"plain,{name}" for name in (*COMMANDS, "help")]),
        ("naflex", "naflex --ver", ["plain,--version"]),
        ("naflex", "naflex nope ", [f"plain,{name}" for name in (*COMMANDS, "help")]),
        ("naflex-export", "naflex-export --list --dry", ["plain,--dry-run"]),
        ("naflex-export", "naflex-export --config no.toml --dry", ["plain,--dry-run"]),
        ("naflex-export", "naflex-export naflexvit_base_patch16_siglip.v2", ["dir,naflexvit_base_patch16_siglip.v2"]),
        ("naflex-export", "naflex-export models/vit", ["dir,models/vit"]),
        ("naflex-gate", "naflex-gate pack naflexvit_base_patch16_g", ["dir,", "plain,naflexvit_base_patch16_gap"]),
        ("naflex-bench", "naflex-bench a --weights p", ["file,p", "plain,pretrained"]),
    ],
)
def test_an_answer_takes_no_library_and_no_second(program: str, line: str, said: list[str]) -> None:
    answers, seconds = asked(program, line)
    assert all(any(one.startswith(word) for one in answers) for word in said) and seconds < 1
    if not said[0].startswith(("dir", "file")):
        assert answers == said  # a list of models, for instance, is not what was asked for


def test_a_shell_that_click_does_not_know_is_an_error() -> None:
    words = [sys.executable, "-c", "from naflex_export.cli.supervised import naflex_main; naflex_main()"]
    environ = {**os.environ, "_NAFLEX_COMPLETE": "csh_source"}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environ)
    assert done.returncode == 1 and done.stdout == ""
