"""The gate as tests of it ask it: on one small bucket."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

import naflex_export as nx

BUCKET = [nx.Bucket(24, (1, 4, 8))]
Candidate = Callable[[Tensor, Tensor, Tensor], Any]


def judge(candidate: Candidate, model: nn.Module, **options: Any) -> nx.GateReport:
    return nx.gate(candidate, model, buckets=BUCKET, **options)
