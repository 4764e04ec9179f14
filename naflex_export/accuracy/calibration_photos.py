"""Photos to calibrate on: every other one of a folder, so that the gate has others to judge neighbours by."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from naflex_export.accuracy.photos import LEAST, Photos, every_other, photo_batches
from naflex_export.errors import RequestError
from naflex_export.graph.calibration import Calibration
from naflex_export.graph.program import Program
from naflex_export.models.adapter import ModelAdapter
from naflex_export.precision import Precision

MOST = 256
"""Photos to calibrate on: a range is known from a few hundred."""


def check_photos(precision: Precision, folder: Path, photos: Photos) -> None:
    """Check that there are photos enough to calibrate on.

    Args:
        precision: in which layers are quantized.
        folder: of the photos.
        photos: that are in it.

    Raises:
        RequestError: there are too few.
    """
    if len(photos.images) < LEAST:
        skipped = "".join(f"; {name} is left out: {why}" for name, why in islice(photos.skipped.items(), 3))
        more = f"; {len(photos.skipped) - 3} more are" if len(photos.skipped) > 3 else ""
        raise RequestError(
            f"{len(photos.images)} photos in {str(folder)!r} are too few to calibrate dtype {precision.quantized!r}: "
            f"expected {LEAST} or more; half of them are calibrated on, and neighbours are searched among the others"
            f"{skipped}{more}"
        )


def calibration_of(adapter: ModelAdapter, photos: Photos, program: Program) -> Calibration:
    """Return batches of photos, prepared as the model's own library does, as a graph takes them.

    Args:
        adapter: of the model.
        photos: all that were given; half of them are used.
        program: whose largest bucket the batches are of.
    """
    chosen, bucket = every_other(photos, 0), program.buckets[-1]
    batches = photo_batches(chosen, adapter.transform(bucket.tokens), bucket)
    feeds, dtype = [], program.precision.torch_dtype
    for batch in islice(batches, max(1, MOST // bucket.batch[1])):
        given = adapter.input_format.arrange(batch)
        cast = [tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in given]
        feeds.append({spec.name: tensor.numpy() for spec, tensor in zip(program.inputs, cast, strict=True)})
    return Calibration(feeds, min(len(chosen.images), bucket.batch[1] * len(feeds)))
