"""Which artifacts hold code that runs when they are loaded, and so are loaded only if they are trusted."""

from __future__ import annotations

from naflex_export.errors import ArtifactError
from naflex_export.serving.manifest import Manifest

RUN_CODE = ("compile", "aot", "trt")
"""Targets whose files hold code that runs when they are loaded; docs/security.md says what that means."""


def check_trusted(manifest: Manifest, trusted: bool) -> None:
    """Check that an artifact may be loaded.

    Raises:
        ArtifactError: it is not trusted, and loading it runs code that it holds.
    """
    if not trusted and manifest.target in RUN_CODE:
        raise ArtifactError(
            f"an artifact of target {manifest.target!r} holds code that runs when it is loaded, and this one is not "
            "trusted: take an 'onnx' artifact, or trust it if you know who made it"
        )
