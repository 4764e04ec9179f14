"""Writing an artifact's folder: built under a temporary name, and renamed into place when it is whole."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from naflex_export.errors import RequestError
from naflex_export.serving.manifest import MANIFEST


def check_destination(out: Path) -> None:
    """Check that an artifact may be written to a path.

    Raises:
        RequestError: something is there that is no artifact; it is never overwritten.
    """
    if out.is_symlink() or out.exists():
        is_artifact = out.is_dir() and not out.is_symlink() and (out / MANIFEST).is_file()
        is_empty = out.is_dir() and not any(out.iterdir())
        if not is_artifact and not is_empty:
            raise RequestError(f"{str(out)!r} exists and is no artifact: give another folder, or move it away")


@contextlib.contextmanager
def staged(out: Path) -> Iterator[Path]:
    """Give a temporary folder beside `out` and rename it into place when the block ends without an error.

    An artifact already there is replaced only then; whatever else is there is left alone.

    Raises:
        RequestError: `out` exists and is no artifact, or cannot be written.
    """
    check_destination(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    except OSError as error:
        raise RequestError(f"cannot write to {str(out.parent)!r}: {error.strerror}") from error
    try:
        folder.chmod(0o755)
        yield folder
        check_destination(out)
        if out.exists():
            _swap(folder, out)
        else:
            folder.rename(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _swap(new: Path, out: Path) -> None:
    """Put `new` in the place of `out`. Killed half-way, it leaves no artifact, never half of one."""
    old = new.with_suffix(".old")
    out.rename(old)
    try:
        new.rename(out)
    except OSError:
        old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)
