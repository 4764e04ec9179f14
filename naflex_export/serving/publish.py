"""Writing an artifact's folder: built beside its destination, and put into place when it is whole.

The folder under work has one name for each destination, so that there is one export to it at a time. Its lock is the
system's, on the folder itself, and goes with the process however that ends: a folder of that name without a lock was
left by an export that was killed, and the next export to the same destination removes it.

A new artifact and an old one exchange their names in one step where the system can do that; the old one is deleted
afterwards. Where it cannot, the old one waits as `<out>.naflex-replaced` until the new one is in place, and the next
export puts it back if that never happened.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from naflex_export.errors import ArtifactError, RequestError
from naflex_export.serving.manifest import MANIFEST, Manifest
from naflex_export.serving.opened import REPLACED

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows has none: there a folder that a killed export left is emptied by the next without a look
    fcntl = None

PARTIAL = ".naflex-partial"
"""What the name of a folder under work ends in."""

_EXCHANGE = 2  # RENAME_EXCHANGE of <linux/fs.h>
_AT_FDCWD = -100
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ENAMETOOLONG)


def check_destination(out: Path) -> None:
    """Check that an artifact may be written to a path.

    Raises:
        RequestError: something is there that is neither an artifact nor an empty folder, or the path is a link or
            inside an artifact; none of these is ever touched.
    """
    try:
        reason = _why_not(named(out))
        check_outside_artifacts(named(out).parent)
    except (OSError, ValueError) as error:
        raise RequestError(f"cannot write to {str(out)!r} ({error}): give another folder") from error
    if reason:
        raise RequestError(f"{str(out)!r} {reason}; docs/errors.md#the-folder-is-no-artifact")


def check_writable(out: Path) -> None:
    """Check that a folder can be made at a path, by a file without a name where it would be: nothing is left of it.

    Raises:
        RequestError: it cannot, as on a file system that is read-only.
    """
    there = next(folder for folder in named(out).absolute().parents if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise RequestError(f"cannot write to {str(there)!r}: {error.strerror}; give another folder") from error


def named(path: Path) -> Path:
    """Return a path with a name of its own, which `.` and `..` have not."""
    return path if path.name not in ("", "..") else path.resolve()


def _why_not(out: Path) -> str:
    """Return why an artifact may not be written to a path, and what to do; empty where it may."""
    if "\0" in str(out):
        raise ValueError("no name holds a zero")
    if out.is_symlink():
        return f"is a link to {str(out.readlink())!r}, which is never replaced: give the folder itself, or another one"
    if not out.is_dir():
        if not _exists(out):
            return ""
        return "exists and is no artifact: give another folder, or move it away (it is no folder)"
    is_empty = not any(out.iterdir())
    if not is_empty and (stranger := _why_no_artifact(out)):
        return f"exists and is no artifact: give another folder, or move it away ({stranger})"
    if out.is_mount():
        return "is a mount point, and no other folder can take its place: give a folder inside it"
    in_use = not is_empty and _is_current(out)
    return "is the current folder, and another would take its place: run this from the folder above" if in_use else ""


def check_outside_artifacts(path: Path) -> None:
    """Check that a path is not in an artifact's folder, where nothing may lie that its manifest does not list.

    Raises:
        RequestError: it is.
    """
    resolved = path.resolve()
    for folder in (resolved, *resolved.parents):
        if (folder / MANIFEST).is_file() and not _why_unread(folder):
            raise RequestError(
                f"{str(path)!r} lies in the artifact {str(folder)!r}, which would not load any more: give a place "
                "outside of it"
            )


@contextlib.contextmanager
def staged(out: Path) -> Iterator[Path]:
    """Give a folder beside `out` to write to, and put it into place when the block ends without an error.

    An artifact already there is replaced only then; whatever else is there is left alone. Files are on the disk before
    they are at their place.

    Raises:
        RequestError: `out` exists and is no artifact, cannot be written, or another export to it is running.
    """
    check_destination(out)
    out = named(out)
    folder = out.with_name(f".{out.name}{PARTIAL}")
    with contextlib.ExitStack() as locks:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            own = _make_locked(folder, out, locks)
        except OSError as error:
            raise RequestError(f"cannot write to {str(out.parent)!r}: {error.strerror}") from error
        try:
            _put_back(out)
            yield folder
            folder.chmod(0o755)
            _flush(folder)
            own = _publish(folder, out, locks) or own
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise RequestError(
                f"cannot write the artifact to {str(out.parent)!r}: {error.strerror}; make room, or give another folder"
            ) from error
        finally:
            if own is None or _is_at(own, folder):  # else it is at its place, or another export has begun
                shutil.rmtree(folder, ignore_errors=True)


def _publish(folder: Path, out: Path, locks: contextlib.ExitStack) -> int | None:
    """Put a finished folder at its place, in one step where the system can.

    Returns:
        The lock of the old artifact that has the finished folder's name now, to be deleted; None where there is none.
    """
    check_destination(out)
    old = None
    try:
        if _exists(out) and any(out.iterdir()):
            old = _lock(out, locks)  # until it is deleted, lest another export take it for a leftover
            if not _exchange(folder, out):
                _swap(folder, out)
            elif reason := _why_no_artifact(folder):  # it came to that name a moment ago
                _exchange(folder, out)
                raise RequestError(f"{str(out)!r} exists and is no artifact: give another folder ({reason})")
        elif _exists(out) and _is_current(out):
            _move_into(folder, out)
        else:
            folder.rename(out)  # over an empty folder too
    except OSError as error:
        if error.errno in _FULL:
            raise
        raise RequestError(
            f"cannot put the artifact at {str(out)!r}: {error.strerror}; what is there was left alone"
        ) from error
    flush_folder(out.parent)
    return old


def _swap(new: Path, out: Path) -> None:
    """Put `new` in the place of `out` by two renames. Killed between them, it leaves the old one beside `out`."""
    old = _aside(out)
    out.rename(old)
    try:
        if reason := _why_no_artifact(old):
            raise RequestError(f"{str(out)!r} exists and is no artifact: give another folder ({reason})")
        new.rename(out)
    except (OSError, RequestError):
        old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _put_back(out: Path) -> None:
    """Put an old artifact back that a killed export left aside, or delete it where the new one came to its place."""
    old = _aside(out)
    if old.is_symlink() or not _exists(old) or _why_no_artifact(old):
        return
    if _exists(out):
        shutil.rmtree(old, ignore_errors=True)
    else:
        old.rename(out)


def _aside(out: Path) -> Path:
    return out.with_name(out.name + REPLACED)


def _move_into(folder: Path, out: Path) -> None:
    """Move what is in `folder` into an empty one that stays what it is; the manifest last, which makes it whole."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name == MANIFEST):
        path.rename(out / path.name)
    flush_folder(out)


def _make_locked(folder: Path, out: Path, locks: contextlib.ExitStack) -> int | None:
    """Make a folder that this process alone works in, after emptying one that a killed export left.

    Returns:
        Its lock; None where the disk has none.

    Raises:
        RequestError: another export works in it.
    """
    for _ in range(100):
        is_new = True
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            is_new = False
        with contextlib.ExitStack() as lock:
            try:
                handle = _lock(folder, lock)
            except OSError:
                if not is_new and (folder.is_symlink() or _exists(folder)):
                    break
                handle = None
            if handle is None and is_new:
                return None
            if handle is None or not _is_at(handle, folder):
                continue  # deleted by its owner meanwhile
            locks.push(lock.pop_all())
            for path in folder.iterdir():
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            folder.chmod(0o700)
            return handle
    raise RequestError(
        f"another export to {str(out)!r} is running: wait for it, or give another folder. If there is none, remove "
        f"{str(folder)!r}"
    )


def _lock(folder: Path, locks: contextlib.ExitStack) -> int | None:
    """Return a handle of a folder, locked until it is closed or this process ends; None where there are no locks.

    Raises:
        BlockingIOError: another has it.
        OSError: it is no folder, or cannot be opened.
    """
    if fcntl is None:
        return None
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    locks.callback(os.close, handle)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # of some disks on a network
        return None
    return handle


def _is_at(handle: int, folder: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), folder.lstat())
    except OSError:
        return False


def _exchange(one: Path, other: Path) -> bool:
    """Exchange the names of two folders in one step; return False where the system or the disk cannot."""
    rename = _renameat2()
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM):
        return False
    raise OSError(code, os.strerror(code), str(other))


@functools.cache
def _renameat2() -> Any:
    try:
        return ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return None


def _why_no_artifact(folder: Path) -> str:
    """Return why a folder is no artifact of ours, and so not ours to replace; empty where it is one."""
    if not folder.is_dir():
        return "it is no folder"
    try:
        manifest = Manifest.read(folder)
    except ArtifactError as error:
        return str(error)
    strangers = manifest.strangers(folder)
    if strangers:
        return f"{strangers[0]!r} in it is not in its manifest"
    links = [name for name in (*manifest.files, MANIFEST) if (folder / name).is_symlink()]
    return f"{links[0]!r} in it is a link" if links else ""


def _why_unread(folder: Path) -> str:
    try:
        Manifest.read(folder)
    except ArtifactError as error:
        return str(error)
    return ""


def _is_current(folder: Path) -> bool:
    """Return whether this process works in a folder or below it: put in its place, another one would be elsewhere."""
    return Path.cwd().resolve().is_relative_to(folder.resolve())


def _exists(path: Path) -> bool:
    return os.path.lexists(path)


def _flush(folder: Path) -> None:
    """Have the disk hold every file and folder before anything is replaced by them."""
    for path in [*folder.rglob("*"), folder]:
        if stat.S_ISREG(path.lstat().st_mode):
            with path.open("rb") as file:
                os.fsync(file.fileno())
        elif path.is_dir():
            flush_folder(path)


def flush_folder(folder: Path) -> None:
    """Have the disk hold which names are in a folder."""
    with contextlib.suppress(OSError):  # some systems have no such thing for folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
