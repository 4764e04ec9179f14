"""Invariances: each can fail, none is asked in vain, and one that fails fails the gate."""

from __future__ import annotations

import pytest
import tiny
import torch
from gates import BUCKET, judge
from torch import Tensor, nn

import naflex_export as nx
from naflex_export.accuracy.report.html import as_html
from naflex_export.batch import Batch


class Bent(nn.Module):
    """A true model whose every output is bent by something that must not matter; or by nothing that must."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.model, self.how = tiny.classifier(), how

    def forward(self, patches: Tensor, coord: Tensor, valid: Tensor) -> Tensor:
        if self.how == "mask-ignored":
            return self.model(patches, coord, torch.ones_like(valid))
        out = self.model(patches, coord, valid)
        if self.how == "padding-leaks":
            padding = torch.where(valid.unsqueeze(-1), 0, patches)
            return out + 1e-3 * padding.abs().amax(dim=(1, 2)).unsqueeze(1)
        if self.how == "first-image-leaks":
            return out + 0.05 * out[:1]
        return out * (1 + 0.001 * valid.shape[1] / 24)  # the token count leaks


@pytest.mark.parametrize(
    ("how", "name"),
    [
        ("mask-ignored", "masking a valid token did not move the features"),
        ("padding-leaks", "padding's content moved the features"),
        ("first-image-leaks", "order in the batch moved the features"),
        ("count-leaks", "amount of padding moved the features"),
    ],
)
def test_each_invariance_can_fail(how: str, name: str) -> None:
    """Judged beside itself, so that no measure can be what fails."""
    from naflex_export.accuracy.invariances import check_invariances

    def run(model: nn.Module) -> list[str]:
        found = check_invariances(
            lambda batch: model(batch.patches, batch.patch_coord, batch.patch_valid), BUCKET[0], 48, 1e-4, seed=0
        )
        assert len(found) == 4
        return [result.failure for result in found if result.failure]

    with torch.no_grad():
        assert run(tiny.classifier()) == []
        assert any(name in text for text in run(Bent(how)))


def test_invariances_that_hold_share_their_calls() -> None:
    """Calls of many tokens are what they cost: two of 64, whatever the bucket has, and two of 16."""
    from naflex_export.accuracy.invariances import check_invariances

    asked, model = list[tuple[int, int]](), tiny.classifier()

    def run(batch: Batch) -> Tensor:
        asked.append((len(batch.grids), batch.patch_valid.shape[1]))
        return model(batch.patches, batch.patch_coord, batch.patch_valid)

    with torch.no_grad():
        found = check_invariances(run, nx.Bucket(256, (1, 2, 4)), 48, 1e-4, seed=0)
    assert [one.failure for one in found] == [""] * 4
    assert asked == [(2, 64), (2, 64), (2, 16), (2, 16)]


def test_what_order_and_padding_move_only_together_is_seen() -> None:
    from naflex_export.accuracy.invariances import check_invariances

    model = tiny.classifier()

    def run(batch: Batch) -> Tensor:
        """A batch that begins with an image smaller than its last heeds padding."""
        out = model(batch.patches, batch.patch_coord, batch.patch_valid)
        is_noisy = batch.patches[~batch.patch_valid].any()
        return 1.5 * out if is_noisy and batch.grids[0].tokens < batch.grids[-1].tokens else out

    with torch.no_grad():
        found = check_invariances(run, BUCKET[0], 48, 1e-4, seed=0)
    (failure,) = (one.failure for one in found if one.failure)
    assert failure.startswith("order in the batch moved the features")


def test_a_broken_invariance_fails_the_gate() -> None:
    report = judge(Bent("padding-leaks"), tiny.classifier())
    assert not report.passed
    with pytest.raises(nx.GateFailure, match="invariance: padding's content moved the features"):
        report.raise_for_failure()
    assert [found.failure for found in judge(tiny.classifier(), tiny.classifier()).invariances] == [""] * 4


def test_a_candidate_that_raises_on_an_invariance_fails(classifier: nn.Module) -> None:
    def candidate(patches: Tensor, coord: Tensor, valid: Tensor) -> Tensor:
        if patches.abs().max() > 100:
            raise ValueError("too large")
        return classifier(patches, coord, valid)

    report = judge(candidate, classifier)
    assert [found.failure for found in report.invariances if found.failure] == [
        "padding's content: the candidate raised ValueError: too large"
    ]
    assert not report.passed and as_html(report)


def test_invariances_are_asked_of_what_could_be_compared_alone(classifier: nn.Module) -> None:
    """Else each of them fails again, for the reason that is told already."""

    def candidate(*inputs: Tensor) -> Tensor:
        if inputs[0].shape[1] == 1:
            raise ValueError("at least two tokens")
        return classifier(*inputs)

    report = judge(candidate, classifier)
    assert report.problems == ("smallest-24-seed0: the candidate raised ValueError: at least two tokens",)
    assert len(report.results) == 8 and report.invariances == ()


@pytest.mark.parametrize(("share", "passes"), [(0.0, False), (3e-8, False), (5e-7, False), (2e-6, True), (1e-2, True)])
def test_masking_a_token_must_move_more_than_rounding_does(share: float, passes: bool) -> None:
    from naflex_export.accuracy.invariances import MASKING, check_invariances

    def run(batch: Batch) -> Tensor:
        """Every valid token of an image adds a share of the features to them."""
        return (1 + share * batch.patch_valid.double().sum(dim=1, keepdim=True)).expand(-1, 8)

    (found,) = (one for one in check_invariances(run, BUCKET[0], 48, 1e-4, seed=0) if one.name == MASKING)
    assert (found.failure == "") == passes
