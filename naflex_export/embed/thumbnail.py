"""A photo small enough for a page: a JPEG of some kilobytes as a data URL, of whatever the photo was."""

from __future__ import annotations

import base64
import io

from PIL import Image

from naflex_export.embed.decode import Photo, Policy, decoded, opened

LONGEST = 160
"""The longest side, in pixels."""


def thumbnail(photo: Photo) -> str:
    """Return a photo as a small JPEG in a data URL.

    Raises:
        PhotoError: it cannot be read.
    """
    policy = Policy(fast_jpeg=True)
    image = decoded(opened(photo, policy), policy, (LONGEST, LONGEST))
    image.thumbnail((LONGEST, LONGEST), Image.Resampling.BILINEAR)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
