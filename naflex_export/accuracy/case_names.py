"""Names of cases, as far as they can be told from wrong ones without drawing a batch, and so without torch."""

from __future__ import annotations

import re
from collections.abc import Sequence

from naflex_export.accuracy.efforts import EFFORTS, SPREAD, STANDARD, SURVEYED
from naflex_export.errors import RequestError
from naflex_export.grid import Bucket

KINDS = dict.fromkeys(kind for effort in EFFORTS.values() for kind in (*effort.kinds, *effort.once))
_NAME = re.compile(rf"(?:{'|'.join([*KINDS, SPREAD, *SURVEYED])})(?:-\d+)?-(\d+)-seed\d+|photos-(\d+)-\d+")


def check_case_names(only: Sequence[str], buckets: Sequence[Bucket], other_parts: Sequence[str] = ()) -> None:
    """Check that cases may exist by their names: of a kind, and of a bucket that is served.

    Args:
        only: names of the cases asked for, with the part of the artifact that they are of ahead of them.
        buckets: that the candidate serves.
        other_parts: parts of the artifact whose cases are named otherwise.

    Raises:
        RequestError: one cannot exist; the message says what others are named.
    """
    tokens = {str(bucket.tokens) for bucket in buckets}
    for name in only:
        part, _, case = name.rpartition("/")
        found = _NAME.fullmatch(case)
        if part.partition("/")[0] not in other_parts and (found is None or (found[1] or found[2]) not in tokens):
            usual = [
                *(f"photos-{bucket.tokens}-0" for bucket in buckets),
                *(f"{kind}-{bucket.tokens}-seed0" for bucket in buckets for kind in EFFORTS[STANDARD].kinds),
            ]
            raise RequestError(f"case {name!r} does not exist: expected a name such as {', '.join(usual)}")
