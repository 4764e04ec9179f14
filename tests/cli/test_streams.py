"""Output that cannot be written: one line that names it, an exit code that is no verdict, and what is published."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from naflex_export.accuracy import photos

ROOT = Path(__file__).parents[2]
NAFLEX = "from naflex_export.cli.supervised import naflex_main; naflex_main()"
PHOTOS = str(Path(photos.__file__).parent)


def ended(code: str, *arguments: str, into: str, cwd: Path) -> tuple[int, str, str]:
    """Return the exit code of Python code whose streams a shell sets, and what it printed."""
    script = f'"$0" -c "$@" {into}'
    if into.startswith("|"):
        script = f'{{ "$0" -c "$@"; echo $? > code; }} {into}'
    done = subprocess.run(
        ["sh", "-c", script, sys.executable, code, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])},
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
    )
    return int((cwd / "code").read_text()) if into.startswith("|") else done.returncode, done.stdout, done.stderr


LOST = [
    ("> /dev/full", 70, "No space left on device"),
    (">&-", 70, "Bad file descriptor"),
    ("| true", 141, "Broken pipe"),
]


@pytest.mark.parametrize("lost", LOST, ids=["full", "closed", "unread"])
@pytest.mark.parametrize(
    ("arguments", "left"),
    [
        ([], ""),
        (["--version"], ""),
        (["gate", "--help"], ""),
        (["export", "--list", "siglip"], "; not all models were listed"),
        (["plan", f"{PHOTOS}/coffee.jpg"], "; nothing was planned"),
    ],
    ids=["naflex", "version", "help", "list", "plan"],
)
def test_a_lost_output_is_said_in_one_line(
    arguments: list[str], left: str, lost: tuple[str, int, str], tmp_path: Path
) -> None:
    into, code, why = lost
    returned, _, stderr = ended(NAFLEX, *arguments, into=into, cwd=tmp_path)
    assert stderr == f"error: standard output cannot be written ({why}){left}\n" and returned == code


@pytest.mark.parametrize("into", ["2> /dev/full", "2>&-"], ids=["full", "closed"])
@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["plan", PHOTOS], 0), (["plan", "no/such/folder"], 2), (["plan", "--k=x"], 2), (["nope"], 2)],
    ids=["skipped-files", "request", "usage", "no-command"],
)
def test_a_lost_standard_error_changes_no_result(arguments: list[str], code: int, into: str, tmp_path: Path) -> None:
    """`naflex-plan` says there which files are no photos, and with an error no more than its code remains."""
    returned, stdout, _ = ended(NAFLEX, *arguments, into=into, cwd=tmp_path)
    assert returned == code and ("--bucket" in stdout) == (code == 0)


PRINTS_WITHIN = """
import sys
from pathlib import Path
import click
from naflex_export.cli.exits import exit_codes, leaves
from naflex_export.serving.publish import staged

def said():
    if sys.argv[2] == "rich":
        from naflex_export.cli.console import out
        out.print("what was found")
    else:
        click.echo("what was found")

@click.command()
@exit_codes
def command():
    if sys.argv[1] == "after":
        leaves("a was published")
        said()
    with staged(Path("a")) as folder:
        (folder / "model.onnx").write_text("half")
        said()

command([])
"""


@pytest.mark.parametrize("printer", ["rich", "click"])
@pytest.mark.parametrize(
    ("when", "left"), [("within", "nothing was published"), ("after", "a was published")], ids=["within", "after"]
)
def test_a_lost_output_is_no_full_disk_of_the_artifact(when: str, left: str, printer: str, tmp_path: Path) -> None:
    code, _, stderr = ended(PRINTS_WITHIN, when, printer, into="> /dev/full", cwd=tmp_path)
    assert code == 70 and stderr == f"error: standard output cannot be written (No space left on device); {left}\n"
    assert list(tmp_path.iterdir()) == []


def test_no_file_takes_the_place_of_a_closed_stream(tmp_path: Path) -> None:
    """What a library prints would go into it."""
    opens = (
        "import os, subprocess, sys; from naflex_export.cli.streams import hold_streams; hold_streams()\n"
        "file = open('found', 'w'); file.write(str(file.fileno())); file.close()\n"
        "inner = 'import os\\ntry:\\n    os.write(1, b\"x\")\\nexcept OSError as error:\\n    os._exit(error.errno)'\n"
        "sys.exit(subprocess.call([sys.executable, '-c', inner]))"
    )
    code, _, _ = ended(opens, into=">&- 2>&- <&-", cwd=tmp_path)
    assert code == 9 and int((tmp_path / "found").read_text()) > 2


@pytest.mark.full
@pytest.mark.parametrize(
    ("options", "left", "there"),
    [((), "nothing was published", []), (("--json",), "a was published", ["a"])],
    ids=["report", "json"],
)
def test_an_export_says_whether_the_artifact_is_there(
    options: tuple[str, ...], left: str, there: list[str], tmp_path: Path
) -> None:
    words = ["export", "tiny:siglip", "--weights", "random", "--target", "onnx", "--out", "a", "--quick"]
    code, _, stderr = ended(NAFLEX, *words, "--bucket", "16:1,1,2", *options, into="> /dev/full", cwd=tmp_path)
    last = f"error: standard output cannot be written (No space left on device); {left}"
    assert code == 70 and stderr.splitlines()[-1] == last
    assert [path.name for path in tmp_path.iterdir()] == there


def test_json_goes_to_standard_output_alone(tmp_path: Path) -> None:
    """The guard takes nothing away: what is printed comes out whole, in the order of its lines."""
    prints = (
        "import json; import click; from naflex_export.cli.exits import exit_codes\n"
        "@exit_codes\n"
        "def command():\n"
        "    print('[1,'); click.echo('2,'); from naflex_export.cli.console import out; out.print('3]')\n"
        "command()"
    )
    code, stdout, stderr = ended(prints, into="", cwd=tmp_path)
    assert code == 0 and json.loads(stdout) == [1, 2, 3] and stderr == ""
