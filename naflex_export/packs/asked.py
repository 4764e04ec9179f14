"""What is asked of a port beside the cases: that nothing moves its vectors which must not.

Each question compares the port with itself. A port that refuses one has not failed it: an endpoint may take no batch of
that form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from naflex_export.packs.opened import Array, Pack

Inputs = Mapping[str, Array]
RunArrays = Callable[[Inputs], Array]
"""From a pack's inputs by name to features [images, features]."""

MASKS = ("patch_valid", "pixel_attention_mask")
CASE = "mixed"
"""Of a pack: images of several shapes, most with padding."""

MORE_PADDING = 8
"""In tokens."""

MUST_MOVE = "masking a valid token"


class NoAnswerError(ValueError):
    """Nobody answers at all, or not in time: what else would be asked is asked in vain."""


@dataclass(frozen=True)
class Asked:
    """One question: what was changed, by which share of their size the vectors moved, or why it was refused."""

    name: str
    moved: float
    refused: str = ""

    def failure(self, floor: float) -> str:
        """Return what is wrong, in words, where rounding explains moves up to a floor; empty where nothing is."""
        if self.refused:
            return ""
        if self.name == MUST_MOVE:
            return "" if self.moved > 1e-6 else f"{self.name} did not move the vectors: is the mask ignored?"
        return "" if self.moved <= floor else f"{self.name} moved the vectors by {self.moved:.1e}: expected none"


def of_arrays(run: RunArrays, pack: Pack) -> tuple[Asked, ...]:
    """Return what a port answers that takes whole batches, with their padding."""
    inputs = pack.inputs(CASE)
    mask = next(name for name in inputs if name in MASKS)
    patches = next(iter(inputs))
    valid = inputs[mask].astype(bool)

    def padding() -> float:
        noise = 100 * np.random.default_rng(0).standard_normal(inputs[patches].shape)
        filled = np.where(valid[..., None], inputs[patches], noise).astype(np.float32)
        return _moved(run(inputs), run({**inputs, patches: filled}))

    def order() -> float:
        return _moved(run(inputs)[::-1], run({name: array[::-1].copy() for name, array in inputs.items()}))

    def company() -> float:
        return _moved(run(inputs)[:1], run({name: array[:1] for name, array in inputs.items()}))

    def more() -> float:
        return _moved(run(inputs), run({name: _padded(array, valid.shape) for name, array in inputs.items()}))

    def masking() -> float:
        shorter = inputs[mask].copy()
        shorter[0, valid[0].sum() - 1] = 0
        return _moved(run(inputs)[:1], run({**inputs, mask: shorter})[:1])

    return _asked(
        {
            "padding's content": padding,
            "order in the batch": order,
            "other images in the batch": company,
            "amount of padding": more,
            MUST_MOVE: masking,
        }
    )


def of_photos(ask: Callable[[list[bytes]], Array], pack: Pack) -> tuple[Asked, ...]:
    """Return what a port answers that takes photos, several at once."""
    photos = [photo.read_bytes() for photo in pack.photos()]
    return _asked(
        {
            "the same photo again": lambda: _moved(ask(photos[:1]), ask(photos[:1])),
            "other photos in the request": lambda: _moved(ask(photos[:1]), ask(photos)[:1]),
            "order in the request": lambda: _moved(ask(photos)[::-1], ask(photos[::-1])),
        }
    )


def again(ask: Callable[[Path], Array], pack: Pack) -> tuple[Asked, ...]:
    """Return what a port answers that takes one photo a call."""
    photo = pack.photos()[0]
    return _asked({"the same photo again": lambda: _moved(ask(photo)[None], ask(photo)[None])})


def _asked(questions: Mapping[str, Callable[[], float]]) -> tuple[Asked, ...]:
    found = []
    for name, question in questions.items():
        try:
            found.append(Asked(name, question()))
        except Exception as error:  # each runtime and library has errors of its own
            found.append(Asked(name, 0.0, (str(error).strip().splitlines() or [type(error).__name__])[0][:200]))
            if isinstance(error, NoAnswerError):
                break
    return tuple(found)


def _padded(array: Array, shape: tuple[int, ...]) -> Array:
    """Return an array of a batch with more padding behind its tokens; one without tokens as it is."""
    if array.shape[:2] != shape or array.shape[1] != shape[1]:
        return array
    return np.pad(array, [(0, 0), (0, MORE_PADDING)] + [(0, 0)] * (array.ndim - 2))


def _moved(before: Array, after: Array) -> float:
    """Return by which share of its size the worst image moved; not a number where a value is not."""
    before, after = before.astype(np.float64), after.astype(np.float64)
    if before.shape != after.shape:
        return float("inf")
    return float((np.linalg.norm(after - before, axis=1) / np.linalg.norm(before, axis=1)).max())
