"""A small pack of the tiny SigLIP."""

from __future__ import annotations

import pytest
import tiny

from naflex_export.packs.opened import Pack
from naflex_export.packs.write import write_pack


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    path = tmp_path_factory.mktemp("packs") / "pack"
    write_pack(tiny.siglip(), path, small=True, name="tiny")
    return Pack.open(path)
