"""Archives that torch reads by itself: looked at first, for its reader trusts what they say of themselves."""

from __future__ import annotations

import os
import struct
import sys
import zipfile
import zlib
from pathlib import Path

MOST_EXPANSION = 4
"""How many times its own size the content of an archive may have. torch writes archives without compression."""

_END = b"PK\5\6".ljust(22, b"\0")
"""What ends an archive without a comment, in its form: torch writes none."""


def expansion(path: Path) -> str:
    """Return why an archive would take far more memory than disk; empty where it would not, or is no archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            content = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return ""
    size = path.stat().st_size
    if content <= MOST_EXPANSION * size + 2**20:
        return ""
    return f"its {size} bytes expand to {content}, which no file of weights does"


def damage(path: Path) -> str:
    """Return what is wrong with a `.pt2` archive; empty where every member is whole, libraries of native code too."""
    if reason := expansion(path):
        return reason
    try:
        with path.open("rb") as file:
            file.seek(-len(_END), os.SEEK_END)
            if not file.read().startswith(_END[:4]):  # zipfile would take an archive inside this one for it
                return "it is no whole archive: it has no end"
        with zipfile.ZipFile(path) as archive:
            return _damaged_member(archive)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError, EOFError, zlib.error) as error:
        return f"it is no whole archive: {str(error)[:200]}"


def _damaged_member(archive: zipfile.ZipFile) -> str:
    if not archive.infolist():
        return "it is empty"
    if (broken := archive.testzip()) is not None:
        return f"{broken[:100]!r} in it is damaged"
    for member in archive.infolist():
        if member.filename.endswith(".so") and sys.platform == "linux":
            with archive.open(member) as file:
                head = file.read(2**16)
            if not _is_whole_library(head, member.file_size):
                return f"{member.filename[:100]!r} in it is no whole library"
    return ""


def _is_whole_library(head: bytes, size: int) -> bool:
    """Return whether all that an ELF header of 64 bits speaks of lies in the file, past which a loader would read."""
    if len(head) < 64 or head[:5] != b"\x7fELF\x02":
        return False
    programs, sections = struct.unpack_from("<QQ", head, 32)
    program_size, num_programs, section_size, num_sections = struct.unpack_from("<HHHH", head, 54)
    end = programs + program_size * num_programs
    if not num_programs or program_size < 56 or end > len(head) or sections + section_size * num_sections > size:
        return False
    for index in range(num_programs):
        start, *_, length = struct.unpack_from("<QQQQ", head, programs + program_size * index + 8)
        if start + length > size:
            return False
    return True
