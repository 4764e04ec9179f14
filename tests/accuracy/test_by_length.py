"""What eager gives images that are run by their length is what it gives each batch, with less work."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import tiny
import torch
from torch import nn

import naflex_export as nx
from naflex_export.accuracy.by_length import MOST_TOKENS, run_by_length
from naflex_export.accuracy.cases import generated_batch, survey_names
from naflex_export.accuracy.comparison import Comparison
from naflex_export.accuracy.efforts import CaseSelection
from naflex_export.batch import Batch, noise_batch
from naflex_export.grid import Grid
from naflex_export.models import adapter_of
from naflex_export.precision import FLOAT32

pytestmark = pytest.mark.usefixtures("survey")

BUCKET = nx.Bucket(64, (1, 4, 16))


@pytest.mark.parametrize("make", [tiny.siglip, tiny.classifier, tiny.siglip2])
def test_each_batch_has_the_outputs_that_it_has_alone(make: Callable[[], nn.Module]) -> None:
    if make is tiny.siglip2:
        pytest.importorskip("transformers")
    model, outputs = make(), ("features", "tokens")
    comparison = Comparison(model, adapter_of(model), outputs, FLOAT32)
    names = survey_names(BUCKET, CaseSelection(fresh_seed=1))
    batches = [generated_batch(name, BUCKET, comparison.reference.token_width) for name in names]
    assert any(name.startswith("holes") for name in names)
    for batch, found in zip(batches, comparison.references_of(batches), strict=True):
        alone = comparison.reference_of(batch)
        assert list(found) == list(outputs)
        for name, value in alone.items():
            valid = comparison.valid_in(batch, value)
            sides = [value, found[name]]
            wanted, given = sides if valid is None else [side.where(valid.unsqueeze(-1), 0) for side in sides]
            assert given.shape == wanted.shape
            assert float((given - wanted).norm() / wanted.norm()) < 1e-6, (batch.name, name)


def test_hardly_any_padding_is_run_and_few_calls_are_made() -> None:
    sizes = [(Grid(3, 3), 40), (Grid(2, 2), 40), (Grid(16, 16), 256), (Grid(1, 250), 256), (Grid(1, 1), 9)]
    batches = [noise_batch(f"b{number}", [grid] * 3, tokens, 1) for number, (grid, tokens) in enumerate(sizes)]
    asked = list[tuple[int, int]]()

    def run(batch: Batch) -> dict[str, torch.Tensor]:
        asked.append((len(batch.grids), batch.patch_valid.shape[1]))
        return {"features": batch.patches.sum(dim=1)}

    found = run_by_length(run, batches, prefix=0)
    assert asked == [(3, 256), (3, 250), (3, 9), (6, 4)] and MOST_TOKENS == 3 * 256
    for batch, outputs in zip(batches, found, strict=True):
        torch.testing.assert_close(outputs["features"], batch.patches.sum(dim=1))
