"""A crash of native code ends in an error of the command, with an exit code that is no verdict."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from naflex_export.cli import supervised
from naflex_export.cli.supervised import COMMANDS

ROOT = Path(__file__).parents[2]
SUPERVISE = (
    "import sys; from naflex_export.cli.supervised import supervise\n"
    "sys.exit(supervise([sys.executable, '-c', *sys.argv[1:]]))"
)


def started(code: str, *arguments: str, cwd: Path = ROOT) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("ends", "code", "said"),
    [
        ("import os; os.abort()", 70, "error: the process that did the work was ended by SIGABRT: native code"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", 70, "was ended by SIGSEGV: native code"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 70, "was killed (SIGKILL), as the system does"),
        ("raise SystemExit(1)", 1, ""),
        ("raise SystemExit(2)", 2, ""),
        ("pass", 0, ""),
    ],
    ids=["abort", "segv", "kill", "gate-failed", "request", "done"],
)
def test_a_crash_is_an_error_and_exit_codes_go_through(ends: str, code: int, said: str) -> None:
    process = started(SUPERVISE, ends)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code and (said in stderr if said else not stderr)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["int", "term"])
@pytest.mark.parametrize("handled", [True, False], ids=["handled", "not-handled"])
def test_what_a_user_asks_for_is_asked_of_the_worker(number: signal.Signals, code: int, handled: bool) -> None:
    """Once: it has a clean-up of its own, which a second one would break. Nothing is left running."""
    catch = f"lambda *_: (print('asked', flush=True), sys.exit({code}))" if handled else "signal.SIG_DFL"
    ends = (
        f"import os, signal, sys, time; signal.signal({int(number)}, {catch})\n"
        "print(os.getpid(), flush=True); time.sleep(60)"
    )
    process = started(SUPERVISE, ends)
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == code and not stderr and stdout.split() == ["asked"] * handled
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated"), (signal.SIGHUP, 129, "hung up")],
    ids=["int", "term", "hup"],
)
def test_what_is_asked_while_python_starts_is_answered_in_a_line(
    number: signal.Signals, code: int, said: str, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, time\nif sys.flags.safe_path:\n    print('starting', flush=True)\n    time.sleep(0.5)\n"
    )
    process = started(
        f"import os, sys; sys.argv = ['naflex-export', 'tiny:siglip', '--target', 'onnx', '--out', {str(tmp_path)!r}]\n"
        f"os.environ['PYTHONPATH'] = {str(tmp_path)!r} + os.pathsep + os.environ['PYTHONPATH']\n"
        "from naflex_export.cli.supervised import export_main; export_main()"
    )
    assert process.stdout is not None and process.stdout.readline() == "starting\n"
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code and stderr == f"error: {said}; nothing was published\n"


@pytest.mark.parametrize(
    ("shell", "number"),
    [('"$0" "$@" & wait $!', signal.SIGINT), ('trap \'\' HUP; exec "$0" "$@"', signal.SIGHUP)],
    ids=["in-the-background", "nohup"],
)
def test_a_signal_that_is_ignored_stays_so(shell: str, number: signal.Signals, tmp_path: Path) -> None:
    """A script's shell has a command with `&` behind it ignore Ctrl-C, and nohup has one ignore a closed terminal."""
    (tmp_path / "naflex_export_going_on.py").write_text(
        "import os, time\nprint(os.getppid(), os.getpid(), flush=True)\n"
        "while not os.path.exists('go on'):\n    time.sleep(0.01)\nraise ImportError('it went on to its end')\n"
    )
    code = (
        "import sys; sys.argv = ['naflex-export', 'naflex_export_going_on:make', '--target', 'onnx']\n"
        "from naflex_export.cli.supervised import export_main; export_main()"
    )
    process = subprocess.Popen(
        ["sh", "-c", shell, sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for one in process.stdout.readline().split():
        os.kill(int(one), number)
    (tmp_path / "go on").touch()
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 2 and "it went on to its end" in stderr


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the worker goes on, and is not waited for")
def test_the_worker_ends_where_the_command_is_killed(tmp_path: Path) -> None:
    (tmp_path / "naflex_export_slow.py").write_text("import time\nprint('here', flush=True)\ntime.sleep(60)\n")
    process = started(
        "import sys; sys.argv = ['naflex-export', 'naflex_export_slow:make', '--target', 'onnx']\n"
        "from naflex_export.cli.supervised import export_main; export_main()",
        cwd=tmp_path,
    )
    assert process.stdout is not None and process.stdout.readline() == "here\n"
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.communicate(timeout=60)
    (worker,) = children
    for _ in range(600):
        if not Path(f"/proc/{worker}").exists() or "\nState:\tZ" in Path(f"/proc/{worker}/status").read_text():
            break
        time.sleep(0.1)
    else:
        pytest.fail("the worker went on")


def test_a_crash_in_the_middle_of_an_export_publishes_nothing(tmp_path: Path) -> None:
    """The command that users have, with a factory that crashes as native code does: Python's own place is printed."""
    (tmp_path / "crashing.py").write_text("import ctypes\ndef make():\n    ctypes.string_at(0)\n")
    process = started(
        "import sys; sys.argv = ['naflex-export', 'crashing:make', '--target', 'onnx', '--out', 'a']\n"
        "from naflex_export.cli.supervised import export_main; export_main()",
        cwd=tmp_path,
    )
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 70 and "was ended by SIGSEGV" in stderr
    assert "Fatal Python error: Segmentation fault" in stderr and "crashing.py" in stderr
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__") == ["crashing.py"]


def test_a_crash_of_embedding_says_that_shards_are_kept(tmp_path: Path) -> None:
    crash = "import ctypes\ndef embed_command(prog_name):\n    ctypes.string_at(0)\n"
    (tmp_path / "sitecustomize.py").write_text(
        f"import sys, types\nmade = types.ModuleType('naflex_export.cli.embed')\nexec({crash!r}, vars(made))\n"
        "sys.modules[made.__name__] = made\n"
    )
    code = (
        "import os, sys; sys.argv = ['naflex-embed', 'a', 'b']\n"
        f"os.environ['PYTHONPATH'] = {str(tmp_path)!r} + os.pathsep + os.environ['PYTHONPATH']\n"
        "from naflex_export.cli.supervised import embed_main; embed_main()"
    )
    _, stderr = (process := started(code)).communicate(timeout=60)
    assert process.returncode == 70 and "was ended by SIGSEGV" in stderr, stderr
    assert "the shards that are done are kept: begin again to go on" in stderr and "published" not in stderr


PRINTS = """
import sys
from naflex_export.cli.exits import exit_codes

@exit_codes
def command():
    if sys.argv[1] == "rich":
        from naflex_export.cli.console import out
        said = out.print
    else:
        from click import echo as said
    for _ in range(20000):
        said("a line")

command()
"""


@pytest.mark.parametrize("printer", ["rich", "click"])
@pytest.mark.parametrize(
    ("into", "code", "why"),
    [("| head -1", 141, "Broken pipe"), ("> /dev/full", 70, "No space left on device")],
    ids=["pipe", "full"],
)
def test_output_that_nobody_takes_is_no_verdict_and_no_traceback(printer: str, into: str, code: int, why: str) -> None:
    script = f'{{ "$0" -c "$1" {printer}; echo "ended with $?" >&2; }} {into}'
    done = subprocess.run(["sh", "-c", script, sys.executable, PRINTS], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines() == [
        f"error: standard output cannot be written ({why}); nothing was published",
        f"ended with {code}",
    ]


MADE_ANOTHER = """
import os, signal, time
from naflex_export.cli.exits import exit_codes
from naflex_export.errors import RequestError

signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs the tests may ignore it, and is inherited from

@exit_codes
def command():
    try:
        os.kill(os.getpid(), signal.{name})
        time.sleep(20)
    except BaseException as error:
        raise RequestError("an import failed") from None

command()
"""


@pytest.mark.parametrize(("name", "code", "said"), [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated")])
def test_a_library_that_makes_another_error_of_a_signal_hides_it_from_nobody(name: str, code: int, said: str) -> None:
    words = [sys.executable, "-c", MADE_ANOTHER.format(name=name)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == code and done.stderr == f"error: {said}; nothing was published\n"


def test_a_list_that_nobody_reads_to_its_end_is_no_failed_gate() -> None:
    """Click would exit with 1, which means a verdict."""
    code = "from naflex_export.cli.supervised import work; work('export')"
    script = '{ "$0" -c "$1" --list; echo "ended with $?" >&2; } | true'
    done = subprocess.run(["sh", "-c", script, sys.executable, code], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines() == [
        "error: standard output cannot be written (Broken pipe); not all models were listed",
        "ended with 141",
    ]


def test_help_takes_no_second_process() -> None:
    code = (
        "import subprocess, sys; sys.argv = ['naflex-gate', '--help']; subprocess.Popen = None\n"
        "from naflex_export.cli.supervised import gate_main; gate_main()"
    )
    process = started(code)
    stdout, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and stdout.startswith("Usage: naflex-gate ")


@pytest.mark.parametrize(
    ("name", "own", "policy"),
    [("export", None, "PASSIVE"), ("gate", None, "PASSIVE"), ("export", "ACTIVE", "ACTIVE"), ("bench", None, None)],
)
def test_threads_of_what_is_neither_timed_nor_served_sleep_while_they_wait(
    monkeypatch: pytest.MonkeyPatch, name: str, own: str | None, policy: str | None
) -> None:
    """Where a user has not said otherwise: spinning takes half of the processor time on a busy machine."""
    given: list[str | None] = []

    def noted(*arguments: object) -> int:
        given.append(os.environ.get("OMP_WAIT_POLICY"))
        return 0

    monkeypatch.setenv("OMP_WAIT_POLICY", own or "")
    if own is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setattr(supervised, "supervise", noted)
    monkeypatch.setattr(signal, "signal", lambda *arguments: None)
    monkeypatch.setattr(sys, "argv", [f"naflex-{name}", "model"])
    with pytest.raises(SystemExit) as ended:
        getattr(supervised, f"{name}_main")()
    assert ended.value.code == 0 and given == [policy]


NAFLEX = "from naflex_export.cli.supervised import naflex_main; naflex_main()"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 0, "Usage: naflex COMMAND"),
        (["--help"], 0, "naflex COMMAND is naflex-COMMAND"),
        (["export", "--help"], 0, "Usage: naflex-export"),
        (["plan", "--help"], 0, "Usage: naflex-plan"),
        (["help"], 0, "Usage: naflex COMMAND"),
        (["help", "plan"], 0, "Usage: naflex-plan"),
        (["Naflex_Plan", "-h"], 0, "Usage: naflex-plan"),
        (["exprot"], 2, "naflex has no command 'exprot'"),
        (["compare"], 2, "Did you mean 'gate compare'?"),
        (["gate", "/no/such/folder"], 2, "there is no folder '/no/such/folder'"),
    ],
)
def test_naflex_lists_the_others_and_runs_them(arguments: list[str], code: int, said: str) -> None:
    done = subprocess.run([sys.executable, "-c", NAFLEX, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == code and said in done.stdout + done.stderr


def test_naflex_knows_every_command_that_is_installed() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert [f"naflex-{name}" for name in COMMANDS] == [name for name in scripts if name != "naflex"]
