"""The input formats that this release knows, found by the names of an artifact's inputs."""

from __future__ import annotations

from collections.abc import Sequence

from naflex_export.errors import ArtifactError
from naflex_export.serving.input_formats import TIMM, TRANSFORMERS, InputFormat
from naflex_export.serving.packed_format import PACKED
from naflex_export.serving.text_format import MASKED_TEXT, TEXT
from naflex_export.serving.tower_format import TowerFormat

INPUT_FORMATS: tuple[InputFormat, ...] = (TIMM, TRANSFORMERS, PACKED, TEXT, MASKED_TEXT)


def input_format_of(names: Sequence[str], patches: Sequence[int | str]) -> InputFormat:
    """Return the format whose inputs have these names.

    Args:
        names: of the inputs.
        patches: the shape of the first, which says how many patches of a vision tower become one token.

    Raises:
        ArtifactError: none has.
    """
    for known in INPUT_FORMATS:
        if known.names == tuple(names):
            return known
    if tower := TowerFormat.of_inputs(names, patches):
        return tower
    all_names = "; ".join(", ".join(known.names) for known in (*INPUT_FORMATS, TowerFormat("hidden_states", (1,))))
    raise ArtifactError(f"inputs {', '.join(names)} are of no format this release knows ({all_names}): export again")
