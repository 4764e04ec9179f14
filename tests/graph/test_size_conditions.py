"""Conditions on sizes that torch.export cannot decide: those that hold for every size are decided, others refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from naflex_export.graph.size_conditions import export_for_all_sizes

DIMS = ({0: Dim("batch", min=1, max=4), 1: Dim("tokens", min=1, max=9)},)
EXAMPLE = (torch.ones(3, 7),)


class Asking(nn.Module):
    """Asks something of the sizes it is given while it is traced."""

    def __init__(self, question: Callable[[int, int], bool]) -> None:
        super().__init__()
        self.question = question

    def forward(self, x: Tensor) -> Tensor:
        """Return twice the input, or three times where the answer is no."""
        return x * 2 if self.question(*x.shape) else x * 3


@pytest.mark.parametrize(
    "question", [lambda batch, tokens: min(tokens, 2 * tokens) == tokens, lambda _, tokens: tokens**2 + 9 > 3 * tokens]
)
def test_what_holds_for_every_size_leaves_no_trace(question: Callable[[int, int], bool]) -> None:
    exported = export_for_all_sizes(Asking(question), EXAMPLE, DIMS)
    called = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    assert called == ["aten.mul.Tensor"]
    for shape in ((1, 1), (4, 9)):
        given = torch.randn(shape)
        torch.testing.assert_close(exported.module()(given), 2 * given)


@pytest.mark.parametrize(
    "question",
    [
        lambda _, tokens: tokens != 8,
        lambda _, tokens: min(tokens, 2 * tokens - 5) == tokens,
    ],
)
def test_what_does_not_hold_for_every_size_is_refused_in_torchs_words(question: Callable[[int, int], bool]) -> None:
    with pytest.raises(torch._dynamo.exc.UserError, match=r"Constraints violated \(tokens\)"):
        export_for_all_sizes(Asking(question), EXAMPLE, DIMS)
