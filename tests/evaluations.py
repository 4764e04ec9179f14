"""Every way in which a learned grid is resized and read, to be put through the same tests."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from naflex_export.resample.add import add_by_operator
from naflex_export.resample.graph_form import resample_at
from naflex_export.resample.weights import Resampling


def add_to_zeros(
    grid: Tensor, coord: Tensor, resampling: Resampling, lengths: Tensor | None = None, **kind: Any
) -> Tensor:
    """Return what `resample_at` does, made by adding it to nothing on a CPU."""
    zeros = torch.zeros(*coord.shape[:2], grid.shape[-1])
    return add_by_operator(zeros, grid, coord, resampling, lengths, **kind)


EVALUATIONS = [pytest.param(resample_at, id="graph"), pytest.param(add_to_zeros, id="cpu")]


WAYS = {
    "antialias": (Resampling(), 1024),
    "whole": (Resampling("bilinear", antialias=False), 1024),
    "few-cells": (Resampling(antialias=False), 1),
}
KINDS = ("loader", "shuffled", "cut")


def each_way_to_read(test: Any) -> Any:
    """Parametrize a test by `resampling`, the `cells` that make a grid large, the `kind` of coordinates and `fill`."""
    for marker in (
        pytest.mark.parametrize(("resampling", "cells"), WAYS.values(), ids=list(WAYS)),
        pytest.mark.parametrize("kind", KINDS),
        pytest.mark.parametrize("fill", [False, True], ids=["zeros", "filled"]),
    ):
        test = marker(test)
    return test


def each_pair_of_ways_to_read(test: Any) -> Any:
    """Parametrize a slow test likewise by half of the ways: any two of the three things are combined in each way."""
    cases = [
        pytest.param(*way, kind, fill, id=f"{name}-{kind}-{'filled' if fill else 'zeros'}")
        for row, (name, way) in enumerate(WAYS.items())
        for column, kind in enumerate(KINDS)
        for fill in [(row + column) % 2 == 0]
    ]
    return pytest.mark.parametrize(("resampling", "cells", "kind", "fill"), cases)(test)
