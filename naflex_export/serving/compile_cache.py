"""What inductor compiled when a `compile` artifact was judged, kept in the artifact for a machine of the same kind.

It is native code, as a `compile` artifact is a program anyway. It is found again where torch, the compiler, the device
and the number of threads are those it was made with; elsewhere the first calls compile, as without it.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import platform
import re
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

FOLDER = "cache"
"""In the artifact."""

_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
_KEPT = ("fxgraph/**/*", "aotautograd/**/*", "triton/**/*", "*/*.so")
"""Of what inductor leaves: graphs, kernels, and no source."""


def made_for(device: torch.device) -> dict[str, str]:
    """Return what compiled code depends on, on this machine, in words.

    Args:
        device: where an artifact runs.
    """
    found = {
        "torch": torch.__version__,
        "torch folder": hashlib.sha256(os.fsencode(Path(torch.__file__).parent)).hexdigest()[:12],  # in kernels' names
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "compiler": _compiler(),
        "device": device.type,
    }
    if device.type == "cuda":
        found["device"] = f"{torch.cuda.get_device_name(device)}, {torch.cuda.get_device_capability(device)}"
    return found


def _compiler() -> str:
    try:
        from torch._inductor.cpp_builder import get_compiler_version_info, get_cpp_compiler

        said = str(get_compiler_version_info(get_cpp_compiler()))
    except Exception:  # of any class, where there is no compiler
        return "none"
    version = re.search(r"(gcc|clang)( version)? [\d.]+", said)
    return f"{version[0] if version else 'unknown'} ({hashlib.sha256(said.encode()).hexdigest()[:12]})"


@contextlib.contextmanager
def _cache_in(folder: Path) -> Iterator[None]:
    """Have inductor keep what it compiles in a folder, and look for it there, for as long as the block runs."""
    before = os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = str(folder)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(_VARIABLE, None)
        else:
            os.environ[_VARIABLE] = before


@contextlib.contextmanager
def recorded(folder: Path) -> Iterator[None]:
    """Put what inductor compiles in the block into an artifact's folder.

    Args:
        folder: the artifact's, its manifest yet to be written.
    """
    from torch._inductor.utils import clear_caches

    with tempfile.TemporaryDirectory(prefix="naflex-cache-") as name, _cache_in(Path(name)):
        clear_caches()  # what was compiled earlier in this process would be missing
        yield
        for pattern in _KEPT:
            for path in Path(name).glob(pattern):
                if path.is_file():
                    to = folder / FOLDER / path.relative_to(name)
                    to.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, to)


class CompileCache:
    """The cache of one artifact, in a folder of this process that goes with it: nothing is written into the artifact.

    Args:
        folder: the artifact's.
        files: of it, by path inside, as its manifest lists them.
        said: what its cache was made for; None where it has none.
        device: where it runs.

    Attributes:
        why_unused: why the cache is not used, in words; empty where it is.
    """

    def __init__(
        self, folder: Path, files: Mapping[str, Any], said: Mapping[str, Any] | None, device: torch.device
    ) -> None:
        self._folder: Path | None = None
        self.why_unused = "the artifact has none"
        if said is None:
            return
        here = made_for(device)
        self.why_unused = "; ".join(
            f"it was made for {name} {said.get(name)!r}, and here it is {value!r}"
            for name, value in here.items()
            if said.get(name) != value
        )
        if self.why_unused:
            logging.getLogger("naflex_export").warning(
                "the artifact's compile cache is not used (%s): the first calls compile", self.why_unused
            )
            return
        self._folder = Path(tempfile.mkdtemp(prefix="naflex-cache-"))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        for name in files:
            if name.startswith(f"{FOLDER}/"):
                to = self._folder / name.removeprefix(f"{FOLDER}/")
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / name, to)

    def compiling(self) -> contextlib.AbstractContextManager[None]:
        """Return a context that a graph is compiled in."""
        return contextlib.nullcontext() if self._folder is None else _cache_in(self._folder)
