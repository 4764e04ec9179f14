"""The blocks of README and docs run as they stand, page by page in their order; what does not run says why here.

A block that nobody accounts for fails a test. Of what a page shows to be typed, words in capitals stand for what the
reader has (`STANDS_FOR`); what names no weights takes random ones; every gate is quick; no bench waits
for `torch.compile`; `timm` makes small models; and what is in 8 bits is left out where ModelOpt is not installed.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from artifacts import fill_pooling
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file
from test_docs import PAGES, ROOT, parser_of
from torch import nn

import naflex_export as nx
from naflex_export.accuracy import efforts
from naflex_export.models.model_sources import randomize

CREATE = timm.create_model
NAME = "naflexvit_base_patch16_siglip"

STANDS_FOR = {"MODEL": NAME, "...": NAME, "PHOTOS": "photos", "OLD": "artifacts/old", "NEW": "artifacts/new"}

PROGRAMS = {
    "pip": "tests/test_install.py installs a wheel, a source distribution and their extras",
    "uv": "tests/test_install.py installs a wheel; docs/install.md holds the sizes that uv came to",
    "docker": "there is no docker here; tests/test_install.py reads the Dockerfiles",
    "ray": "tests/embed/test_ray.py starts a cluster",
    "curl": "tests/server/test_server.py asks the addresses",
    "python": "tests/tools runs the tools",
    "mkdir": "makes what docker mounts",
    "pytest": "is what runs",
    "printf": "writes what `uv pip install --excludes` takes",
}
"""By the first word of a line: why it is not run here."""

COMMANDS = {
    "naflex-search": "tests/models/test_siglip2_text.py",
    "naflex-serve": "tests/server/test_server.py",
    "naflex-gate judge": "tests/packs/test_packs.py and tests/packs/test_endpoints.py",
    "naflex-embed artifacts/siglip list.txt": "tests/embed/test_ray.py",
}
"""Commands that need more than a page's reader has in a folder: which tests run them."""

NOT_RUN = {
    ("docs/architecture.md", "model -> vectorize"): "a drawing",
    ("docs/architecture.md", "manifest.json    kind"): "files, which tests/serving/test_patch_sizes.py looks at",
    ("docs/architecture.md", "d = "): "a formula",
    ("docs/commands.md", '{"published": true'): "output, whose fields tests/cli/test_several.py reads",
    ("docs/commands.md", 'eval "$(_NAFLEX'): "of a shell that is used; click's own",
    ("docs/gate.md", "first deviation: "): "output, which tests/accuracy/test_locate.py reads",
    ("docs/gate.md", "diagnosis: no-antialias"): "output, which tests/accuracy/test_diagnosis.py reads",
    ("docs/gate.md", "def test_artifact("): "tests/test_pytest_plugin.py runs the fixture",
    ("docs/gate.md", "name: accuracy"): "a workflow of GitHub; its commands are those of other blocks",
    (
        "docs/packed.md",
        "fast = nx.vectorize(model.visual)",
    ): "tests/models/test_vision_towers.py does it with each tower",
    ("docs/packs.md", "naflex-gate pack MODEL --out PACK [--small]"): "what can be typed; tests/packs types it",
    ("docs/scale.md", "import ray"): "tests/embed/test_ray.py has a Ray and photos",
    ("docs/serving.md", "import base64"): "tests/server/test_server.py runs it beside a server",
    ("docs/serving.md", "import naflex_export as nx"): "tests/server/test_server.py runs it",
    ("docs/serving.md", "models/siglip/config.pbtxt"): "files, which tests/server/test_triton.py looks at",
    ("docs/serving.md", "/usr/bin/python3 -m venv"): "tests/server/test_triton_server.py takes the environment",
    ("docs/tensorrt.md", "run = nx.load("): "needs a GPU: tests/test_gpu.py",
    ("docs/training.md", "GLIBC_TUNABLES="): "a setting of an environment",
    (
        "docs/zero_shot.md",
        "cosine      = ",
    ): "formulas; tests/models/test_siglip2_text.py compares them with the model's",
    ("docs/zero_shot.md", "pip install '.[hf,embed,text]'"): "tests/models/test_siglip2_text.py runs it",
    ("docs/zero_shot.md", "import naflex_export as nx"): "tests/models/test_siglip2_text.py runs it",
}
"""By page and beginning of the block: why it is not run here."""

SHELL = ("sh", "")


def all_blocks(page: Path) -> list[tuple[str, str]]:
    """Return the language and the text of each fenced block, in order."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"^( *)```(\w*)\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE)
    assert text.count("```") == 2 * len(found), f"{page.name}: a block that is not fenced by lines of their own"
    return [(language, re.sub(f"^{indent}", "", body, flags=re.MULTILINE)) for indent, language, body in found]


NAMED = [page.relative_to(ROOT).as_posix() for page in PAGES if page.name != "api.md"]  # that one shows signatures


def why_not(name: str, text: str) -> str | None:
    return next((why for (page, start), why in NOT_RUN.items() if page == name and text.startswith(start)), None)


def runnable(name: str) -> list[tuple[str, str]]:
    return [(language, text) for language, text in all_blocks(ROOT / name) if why_not(name, text) is None]


def lines_of(text: str) -> Iterator[str]:
    """Return the commands of a block, one after the other."""
    for line in text.replace("\\\n", " ").splitlines():
        for part in re.split("&&", line.partition("  #")[0]):
            if part.strip():
                yield part.strip()


def command_elsewhere(line: str) -> str | None:
    return next((tests for start, tests in COMMANDS.items() if line.startswith(f"{start} ")), None)


@pytest.mark.parametrize("name", NAMED)
def test_each_block_runs_or_says_why_not(name: str) -> None:
    for language, text in runnable(name):
        where = f"{name}: {text.splitlines()[0]!r}"
        assert language in ("python", "toml", *SHELL), f"{where}: say in NOT_RUN why it is not run"
        for line in lines_of(text) if language in SHELL else ():
            program = line.split()[0]
            is_ours = re.match(r"naflex(-[a-z]+| [a-z]+)$", " ".join(line.split()[: 1 + (program == "naflex")]))
            assert is_ours or program in PROGRAMS, f"{where}: say in PROGRAMS why {program} is not run"


@pytest.mark.parametrize("name", NAMED)
def test_what_is_typed_stands_between_fences(name: str) -> None:
    """A block by indentation is no block to what reads the pages here; in a list it is a paragraph."""
    text = re.sub(r"^( *)```.*?^ *```$", "", (ROOT / name).read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    assert not re.findall(r"^(?! *[-*\d]).*\n\n {4}\S.*", text, re.MULTILINE)


def test_no_reason_outlives_its_block_and_the_tests_that_it_names_are_there() -> None:
    whole = {(name, text) for name in NAMED for _, text in all_blocks(ROOT / name)}
    for page, start in NOT_RUN:
        assert sum(name == page and text.startswith(start) for name, text in whole) == 1, f"{page}: {start}"
    lines = [
        line for name in NAMED for language, text in runnable(name) if language in SHELL for line in lines_of(text)
    ]
    assert not {start for start in COMMANDS if not any(line.startswith(f"{start} ") for line in lines)}
    assert set(PROGRAMS) == {line.split()[0] for line in lines} & set(PROGRAMS)
    for why in [*PROGRAMS.values(), *COMMANDS.values(), *NOT_RUN.values()]:
        assert all((ROOT / named).exists() for named in re.findall(r"tests/[\w/.]*\w", why)), why


DEPTH = {"docs/precision.md": 12}
"""Blocks of the small models of pages that name some; elsewhere there is one."""


def tiny_create_model(*args: object, depth: int = 1, **options: object) -> nn.Module:
    """As timm's, with the named model's patches and few of everything else."""
    small = {"embed_dim": 32, "depth": depth, "num_heads": 2, "mlp_ratio": 2.0}
    model = CREATE(*args, **{**options, **small})
    randomize(model, seed=0)
    return model


class Reader:
    """A folder with what a page's reader has, and what the page has them type there.

    Args:
        folder: empty.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        many = [f"photos/{number}.jpg" for number in range(24)]
        for name in (*many, "photos/one.jpg", "photos/two.jpg", "one.jpg", "two.jpg", "photo.jpg"):
            (folder / name).parent.mkdir(exist_ok=True)
            Image.effect_noise((120, 90), 80).convert("RGB").save(folder / name)
        for kind in ("shoes", "hats", "coats"):
            (folder / "pictures" / kind).mkdir(parents=True)
            for number in range(3):
                Image.effect_noise((80, 60 + 10 * number), 80).convert("RGB").save(
                    folder / "pictures" / kind / f"{number}.jpg"
                )
        self.model = timm.create_model(NAME).eval()
        state = {name: tensor.contiguous() for name, tensor in self.model.state_dict().items()}
        for name in ("model.safetensors", "w.safetensors"):
            save_file(state, folder / name)
        for name in ("siglip", "old", "new"):
            fill_pooling(folder / "artifacts" / name, buckets=(nx.Bucket(256),))
        pixels = np.zeros((30, 40, 3), np.uint8)
        self.names: dict[str, Any] = {
            "nx": nx,
            "Path": Path,
            "model": self.model,
            "photos": ["one.jpg", "two.jpg"],
            "array": pixels,
            "pil_image": Image.fromarray(pixels),
            "jpeg_bytes": (folder / "one.jpg").read_bytes(),
            "arrays": [
                np.zeros((1, 16, 48), np.float32),
                np.indices((4, 4)).reshape(2, 16).T[None],
                np.ones((1, 16), bool),
            ],
        }

    def command(self, line: str) -> None:
        """Run a command of this package."""
        words = [STANDS_FOR.get(word, word) for word in shlex.split(line)]
        found = parser_of(words)
        arguments = words[2 if words[0] == "naflex" else 1 :]
        if found.name in ("export", "pack"):
            arguments += [] if "--weights" in words else ["--weights", "random"]
        if found.name == "bench":
            arguments += ["--no-compile"]
        done = CliRunner().invoke(found, arguments[1:] if found.name in arguments[:1] else arguments)
        assert done.exit_code == 0, f"{line}\n{done.output}"

    def block(self, language: str, text: str) -> None:
        """Do what a block says."""
        without_8_bits = importlib.util.find_spec("modelopt") is None
        if language == "python":
            if not ('dtype="int8"' in text and without_8_bits):
                exec(compile(text, "block", "exec"), self.names)
        elif language == "toml":
            Path("run.toml").write_text(text, encoding="utf-8")
            self.command("naflex-export --config run.toml --dry-run")
        else:
            for line in lines_of(text):
                left_out = "--dtype int8" in line and without_8_bits
                if line.startswith("naflex") and command_elsewhere(line) is None and not left_out:
                    self.command(line)


def prepare_packs(reader: Reader) -> None:
    from naflex_export.batch import noise_batch
    from naflex_export.grid import Grid

    names = ("patches", "patch_coord", "patch_valid")
    batch = noise_batch("a", [Grid(3, 4), Grid(5, 2)], 16, 768)
    inputs = (batch.patches, batch.patch_coord, batch.patch_valid)
    reader.names |= {"batches": dict(zip(names, inputs, strict=True)), "targets": torch.zeros(2, 32)}
    reader.names["criterion"] = nn.functional.mse_loss


def prepare_judged(reader: Reader) -> None:
    reader.command("naflex-export --weights model.safetensors --target onnx --out artifacts/siglip")


PREPARE: dict[str, Callable[[Reader], None]] = {
    "docs/packed.md": prepare_packs,
    "docs/gate.md": prepare_judged,
    "docs/quantization.md": prepare_judged,
}
"""Pages whose reader has more."""


def runs(name: str) -> bool:
    return any(
        language not in SHELL
        or any(line.startswith("naflex") and command_elsewhere(line) is None for line in lines_of(text))
        for language, text in runnable(name)
    )


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # of timm's loader, where cores are few
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set:UserWarning")  # the same, without a GPU
@pytest.mark.parametrize("name", [name for name in NAMED if runs(name)])
def test_a_page_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("timm.create_model", partial(tiny_create_model, depth=DEPTH.get(name, 1)))
    for effort in efforts.EFFORTS:
        monkeypatch.setitem(efforts.EFFORTS, effort, efforts.EFFORTS["quick"])
    monkeypatch.chdir(tmp_path)
    reader = Reader(tmp_path)
    PREPARE.get(name, lambda reader: None)(reader)
    for language, text in runnable(name):
        reader.block(language, text)
    if name == "docs/start/production.md":
        assert [getattr(vector, "shape", vector) for vector in reader.names["vectors"]] == [(32,)] * 2
    if name in ("README.md", "docs/start/training.md"):
        assert isinstance(reader.names["fast"], nn.Module)
