"""What must and what must not move an artifact's outputs, checked on the artifact itself, without a reference.

A mask that a parser dropped, a batch that was baked in or a grid read from the wrong image can hide in an error that is
still within the limits. Here the candidate is compared with itself, so the answer is yes or no.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from naflex_export.batch import Batch, noise_batch, picked
from naflex_export.grid import Bucket, Grid

Run = Callable[[Batch], Tensor]
"""Returns the candidate's features [B, F] of a batch; unpooled ones [B, N, F] with zeros for padding."""

MOST_TOKENS, MOST_SIDE = 64, 4
"""Of the batches that are changed: where images are small, padding and a single token weigh most, and little is run."""

MASKING = "masking a valid token"
"""The one check that must move the features."""

MOVED = 1e-6
"""Share of the features' size by which masking a token must move them; an ignored mask moves nothing at all."""


@dataclass(frozen=True)
class Invariance:
    """One check: what was changed, by how much the features moved as a share of their size, and what is wrong.

    `bucket` is the one that it was checked in.
    """

    name: str
    moved: float
    failure: str
    bucket: str = ""


def check_invariances(
    run: Run,
    bucket: Bucket,
    token_width: int,
    floor: float,
    seed: int,
    *,
    output: str = "features",
    packed: bool = False,
    masks: bool = True,
) -> list[Invariance]:
    """Return what was found by the checks that a bucket has room for; a candidate that raises on one has failed it.

    Args:
        run: the candidate, without a Runner's checks: a masked token makes a batch that no loader would.
        bucket: what it serves.
        token_width: values in a flattened patch.
        floor: relative change that rounding explains, the limit of `relative_l2` for the candidate's dtype.
        seed: of the images.
        output: what `run` returns.
        packed: the candidate takes the images one after the other, with no padding between them.
        masks: a single token can be left out of a call.
    """
    tokens = min(bucket.tokens, MOST_TOKENS)
    side = max(1, min(MOST_SIDE, int((tokens // 2) ** 0.5)))
    grids = [Grid(side, side), Grid(1, side), Grid(side, max(1, side - 1))]
    grids = grids if tokens < MOST_TOKENS else grids[:2]  # a third of so many tokens says no more
    batch = _sized(noise_batch(f"invariances-seed{seed}", grids, tokens, token_width), bucket)
    plain = functools.cache(lambda: run(batch))
    checks: dict[str, Callable[[], float]] = {}
    if not packed and len(batch.grids) > 1:
        checks |= _at_once_or_apart(
            {
                "padding's content": lambda: _moved(plain(), run(_noisy_padding(batch))),
                "order in the batch": lambda: _moved(plain().flip(0), run(_reversed(batch))),
            },
            lambda: _moved(plain().flip(0), run(_reversed(_noisy_padding(batch)))),
            floor,
        )
    elif not packed:
        checks["padding's content"] = lambda: _moved(plain(), run(_noisy_padding(batch)))
    elif len(batch.grids) > 1:
        checks["neighbours' content"] = lambda: _moved(plain()[1:2], run(_noisy_neighbours(batch))[1:2])
        if bucket.batch[0] == 1:
            checks["company in a pack"] = lambda: _moved(plain()[1:2], run(picked(batch, [1])))
        checks["order in the batch"] = lambda: _moved(plain().flip(0), run(_reversed(batch)))
    least, of_least = batch, plain
    if not packed and tokens > 2 * side * side:
        least = _shorter(batch)
        of_least = functools.cache(lambda: run(least))
        checks["amount of padding"] = lambda: _moved(plain(), of_least())
    if side > 1 and masks:
        checks[MASKING] = lambda: _moved(of_least()[:1], run(_without_last_token(least))[:1])
    return [_found(name, check, floor, str(bucket), output) for name, check in checks.items()]


def _at_once_or_apart(
    apart: dict[str, Callable[[], float]], together: Callable[[], float], floor: float
) -> dict[str, Callable[[], float]]:
    """Return checks that share one call: where all their changes together move nothing, none of them does.

    Where they do, or the candidate raises, each change is made by itself, to say which it is; what only both together
    move is the last's. A call of a bucket's most tokens is as dear as a case.

    Args:
        apart: the checks, by name.
        together: how far all their changes at once move the features.
        floor: up to which that is nothing.
    """
    alone = functools.cache(lambda name: apart[name]())

    @functools.cache
    def moved() -> float:
        with contextlib.suppress(Exception):  # the check that it is for raises by itself
            return together()
        return math.nan

    def holds(name: str) -> bool:
        with contextlib.suppress(Exception):
            return bool(alone(name) <= floor)
        return False

    def found(name: str) -> float:
        if moved() <= floor:
            return moved()
        is_last = name == list(apart)[-1]
        return moved() if is_last and all(holds(one) for one in apart) else alone(name)

    return {name: functools.partial(found, name) for name in apart}


def _found(name: str, check: Callable[[], float], floor: float, bucket: str, output: str) -> Invariance:
    try:
        moved = check()
    except Exception as error:  # whatever it raises on a batch that it is to serve, it has failed
        return Invariance(name, math.nan, f"{name}: the candidate raised {type(error).__name__}: {error}", bucket)
    if name == MASKING:
        failure = "" if moved > MOVED else f"{name} did not move the {output}: is the mask ignored?"
    else:
        failure = "" if moved <= floor else f"{name} moved the {output} by {moved:.1e}: expected none"
    return Invariance(name, moved, failure, bucket)


def _moved(before: Tensor, after: Tensor) -> float:
    """Return the relative L2 change; not a number where the features hold one, which passes no check.

    Of unpooled features those tokens are compared that are valid in both: `Run` has zeros for the others.
    """
    before, after = before.detach().cpu().double(), after.detach().cpu().double()
    if before.ndim == 3:
        tokens = min(before.shape[1], after.shape[1])
        before, after = before[:, :tokens], after[:, :tokens]
        both = (before != 0).any(dim=-1) & (after != 0).any(dim=-1)
        before, after = before[both], after[both]
    return float((after - before).norm() / before.norm())


def _sized(batch: Batch, bucket: Bucket) -> Batch:
    """Return the batch with as many images as the bucket takes, repeating or dropping some."""
    smallest, _, largest = bucket.batch
    count = min(max(len(batch.grids), smallest), largest)
    images = [index % len(batch.grids) for index in range(count)]
    return picked(batch, images)


def _reversed(batch: Batch) -> Batch:
    return picked(batch, range(len(batch.grids) - 1, -1, -1))


def _noisy_padding(batch: Batch) -> Batch:
    """Return the batch with large values in its padding."""
    noise = 100 * torch.randn(batch.patches.shape, generator=torch.Generator().manual_seed(0))
    return replace(batch, patches=torch.where(batch.patch_valid.unsqueeze(-1), batch.patches, noise))


def _noisy_neighbours(batch: Batch) -> Batch:
    """Return the batch with large values in every image but the second, which has neighbours on either side."""
    noise = 100 * torch.randn(batch.patches.shape, generator=torch.Generator().manual_seed(0))
    noise[1] = batch.patches[1]
    return replace(batch, patches=noise * batch.patch_valid.unsqueeze(-1))


def _shorter(batch: Batch) -> Batch:
    """Return the batch padded to no more tokens than its largest image has."""
    tokens = max(grid.tokens for grid in batch.grids)
    return replace(
        batch,
        patches=batch.patches[:, :tokens],
        patch_coord=batch.patch_coord[:, :tokens],
        patch_valid=batch.patch_valid[:, :tokens],
    )


def _without_last_token(batch: Batch) -> Batch:
    """Return the batch with the last token of its first image masked, and nothing else changed."""
    valid = batch.patch_valid.clone()
    valid[0, batch.grids[0].tokens - 1] = False
    return replace(batch, patch_valid=valid)
