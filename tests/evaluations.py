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


def each_way_to_read(test: Any) -> Any:
    """Parametrize a test by `resampling`, the `cells` that make a grid large, the `kind` of coordinates and `fill`."""
    for marker in (
        pytest.mark.parametrize(
            ("resampling", "cells"),
            [(Resampling(), 1024), (Resampling("bilinear", antialias=False), 1024), (Resampling(antialias=False), 1)],
            ids=["antialias", "whole", "few-cells"],
        ),
        pytest.mark.parametrize("kind", ["loader", "shuffled", "cut"]),
        pytest.mark.parametrize("fill", [False, True], ids=["zeros", "filled"]),
    ):
        test = marker(test)
    return test
