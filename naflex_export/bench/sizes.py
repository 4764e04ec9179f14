"""Which batches an artifact is timed on, told by its manifest alone and so without torch."""

from __future__ import annotations

from collections.abc import Sequence

from naflex_export.errors import RequestError
from naflex_export.grid import Bucket
from naflex_export.serving.manifest import Manifest


def sizes_of(manifest: Manifest, batches: Sequence[int] = (), tokens: Sequence[int] = ()) -> list[tuple[int, int]]:
    """Return the images and tokens of the batches to time on, smaller tokens first.

    Args:
        manifest: the artifact's.
        batches: images of a batch; by default the smallest, usual and largest of the bucket that takes the tokens.
        tokens: that images are padded to; by default those of each bucket.

    Raises:
        RequestError: no bucket takes a batch asked for.
    """
    sizes = []
    for count in sorted(set(tokens or [bucket.tokens for bucket in manifest.buckets])):
        taking = [bucket for bucket in manifest.buckets if count <= bucket.tokens]
        _check(taking, manifest, f"{count} tokens are more than any bucket takes")
        for images in sorted(set(batches or taking[0].batch)):
            fitting = [bucket for bucket in taking if bucket.takes({"batch": images, "tokens": count})]
            _check(fitting, manifest, f"no bucket takes {images} images of {count} tokens")
            sizes.append((images, count))
    return sizes


def _check(buckets: Sequence[Bucket], manifest: Manifest, problem: str) -> None:
    if not buckets:
        served = ", ".join(map(str, manifest.buckets))
        raise RequestError(f"{problem}: expected one of {served}, as tokens:min,opt,max")
