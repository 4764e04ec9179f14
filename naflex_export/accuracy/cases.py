"""Cases: the batches that a candidate is judged on, by names from which each can be made again."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence

from naflex_export.accuracy.case_contents import BLACK, CONTENTS, with_contents, with_holes
from naflex_export.accuracy.case_grids import SEVERAL, plan_of, plans_of, sizes_of_cases
from naflex_export.accuracy.efforts import (
    EFFORTS,
    EXTREME,
    FRESH,
    HOLES,
    QUICK_KINDS,
    SAMPLED,
    SPREAD,
    SURVEYED,
    THOROUGH,
    CaseSelection,
)
from naflex_export.accuracy.photos import photos_name
from naflex_export.accuracy.sampling import drawn_freely, sample
from naflex_export.batch import Batch, noise_batch
from naflex_export.errors import RequestError
from naflex_export.grid import Bucket


def cases_of(bucket: Bucket, selection: CaseSelection, num_photos: int) -> list[str]:
    """Return the names of the cases that a bucket is judged on.

    Args:
        bucket: what the candidate serves.
        selection: which cases are asked for.
        num_photos: how many photos there are.
    """
    effort = EFFORTS[THOROUGH if selection.only else selection.effort]
    if selection.only:
        kinds = (*effort.kinds, *effort.once, SPREAD, *SURVEYED)
        asked = [kind for kind in kinds if any(name.startswith(f"{kind}-") for name in selection.only)]
        kinds_of = dict.fromkeys(_seeds_in(selection.only), tuple(asked))
    else:
        kinds_of = dict.fromkeys(range(selection.seed, selection.seed + effort.num_seeds), effort.kinds)
        kinds_of[selection.seed] += effort.once
    names = [photos_name(bucket, number) for number in range(math.ceil(num_photos / bucket.batch[1]))]
    names += [name for seed, kinds in kinds_of.items() for kind in kinds for name in _names(kind, bucket, seed)]
    return [name for name in names if not selection.only or name in selection.only]


def is_quick(name: str) -> bool:
    """Whether a case is one that every effort has."""
    return name.startswith(tuple(f"{kind}-" for kind in ("photos", *QUICK_KINDS)))


def survey_names(bucket: Bucket, selection: CaseSelection) -> list[str]:
    """Return the names of the batches that a survey adds to the cases of a bucket; none in an effort without one.

    Args:
        bucket: what the candidate serves.
        selection: which cases are asked for.
    """
    effort = EFFORTS[selection.effort]
    if not effort.sampled or selection.only:
        return []
    others = sizes_of_cases(bucket, selection.seed)
    names = _numbered(SAMPLED, bucket, selection.seed, len(sample(bucket, selection.seed, effort.sampled, others)))
    names += _names(EXTREME, bucket, selection.seed) + _names(HOLES, bucket, selection.seed)
    fresh = drawn_freely(bucket, selection.fresh_seed, effort.fresh)
    return names + _numbered(FRESH, bucket, selection.fresh_seed, len(fresh))


def tokens_of(name: str, bucket: Bucket) -> int:
    """Return how many tokens a generated batch has, those of padding too, without making it.

    Args:
        name: the batch's, as for `generated_batch`.
        bucket: what the candidate serves.
    """
    kind, number, seed = _parsed(name)
    plan = plan_of(kind, number, bucket, seed)
    return len(plan.grids) * plan.tokens


def generated_batch(name: str, bucket: Bucket, token_width: int) -> Batch:
    """Return the seeded batch of a name that `cases_of` gave, such as `mixed-256-seed0`.

    The name says its kind, its bucket's tokens and its seed: with the bucket's batch sizes, all it is drawn from. None
    is of the shape that `trace.EXAMPLE` has.

    Args:
        name: the batch's.
        bucket: what the candidate serves.
        token_width: values in a flattened patch.

    Raises:
        RequestError: it would not fit into this machine's memory.
    """
    kind, number, seed = _parsed(name)
    plan = plan_of(kind, number, bucket, seed)
    needed, there = 4 * len(plan.grids) * plan.tokens * token_width, _memory()
    if needed > there // 2:
        raise RequestError(
            f"case {name!r} has {len(plan.grids)} images of {plan.tokens} tokens, {needed / 2**30:.0f} GiB of patches, "
            f"and this machine has {there / 2**30:.0f}: judge other cases with --case, or export smaller buckets"
        )
    batch = noise_batch(name, plan.grids, plan.tokens, token_width, plan.scale)
    if kind == EXTREME:
        is_last = number == len(plans_of(kind, bucket, seed)) - 1
        count = len(CONTENTS) + 1
        return with_contents(
            batch, [BLACK if is_last else (number * bucket.batch[2] + row) % count for row in range(len(plan.grids))]
        )
    return with_holes(batch) if kind == HOLES else batch


def _memory() -> int:
    """Return the bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 2**40


def _names(kind: str, bucket: Bucket, seed: int) -> list[str]:
    if kind not in SEVERAL:
        return [f"{kind}-{bucket.tokens}-seed{seed}"]
    return _numbered(kind, bucket, seed, len(plans_of(kind, bucket, seed)))


def _numbered(kind: str, bucket: Bucket, seed: int, count: int) -> list[str]:
    return [f"{kind}-{number}-{bucket.tokens}-seed{seed}" for number in range(count)]


def _parsed(name: str) -> tuple[str, int, int]:
    """Return the kind, the number within the kind and the seed that a name says."""
    found = re.fullmatch(r"([a-z-]+?)(?:-(\d+))?-\d+-seed(\d+)", name)
    assert found is not None  # `cases_of` made it
    return found[1], int(found[2] or 0), int(found[3])


def _seeds_in(names: Sequence[str]) -> list[int]:
    found = (re.search(r"-seed(\d+)$", name) for name in names)
    return sorted({int(match[1]) for match in found if match})
