"""Convolutions over a single window, as the matrix products that they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("transformers")

from tower_tiny import TOWERS, outputs_of, pack_for

from naflex_export.models import adapter_of
from naflex_export.models.one_window import as_products

CONVOLUTIONS = {
    "2d": lambda: nn.Conv2d(3, 8, (2, 4), stride=(2, 4)),
    "3d": lambda: nn.Conv3d(3, 8, (2, 4, 4), stride=(2, 4, 4), bias=False),
    "padding-valid": lambda: nn.Conv2d(3, 8, 4, stride=4, padding="valid"),
    "one-by-one": lambda: nn.Conv2d(3, 8, 1),
}
OTHERS = {
    "several-windows": (lambda: nn.Conv2d(3, 8, 2, stride=2), (5, 3, 2, 4)),
    "padding": (lambda: nn.Conv2d(3, 8, 2, padding=1), (5, 3, 2, 2)),
    "padding-same": (lambda: nn.Conv2d(3, 8, 3, padding="same"), (5, 3, 3, 3)),
    "dilation": (lambda: nn.Conv2d(3, 8, 2, dilation=2), (5, 3, 3, 3)),
    "groups": (lambda: nn.Conv2d(4, 8, 2, groups=2), (5, 4, 2, 2)),
    "one-image": (lambda: nn.Conv2d(3, 8, 2), (3, 2, 2)),
}


class Recorded(TorchDispatchMode):
    """Keeps the names of the operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))

    @property
    def convolves(self) -> bool:
        return any("convolution" in name for name in self.names)


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_values_and_gradients_are_those_of_the_convolution(kind: str) -> None:
    """In float64, where a sum in another order shows in the last digits alone."""
    torch.manual_seed(0)
    own = CONVOLUTIONS[kind]().double()
    product = CONVOLUTIONS[kind]().double()
    product.load_state_dict(own.state_dict())
    as_products(product)
    inputs = torch.randn(5, 3, *own.kernel_size, dtype=torch.float64)
    found = []
    for module in (own, product):
        given = inputs.clone().requires_grad_()
        with Recorded() as ops:
            out = module(given)
            out.square().sum().backward()
        assert ops.convolves == (module is own)
        found.append([out.detach(), given.grad, *(parameter.grad for parameter in module.parameters())])
    for theirs, ours in zip(*found, strict=True):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", OTHERS)
def test_others_stay_what_they_are(kind: str) -> None:
    make, shape = OTHERS[kind]
    torch.manual_seed(0)
    module, inputs = make(), torch.randn(shape)
    expected = module(inputs)
    as_products(module)
    assert torch.equal(module(inputs), expected)


def test_a_class_of_a_users_own_is_left_alone() -> None:
    class Scaled(nn.Conv2d):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(input)

    module = nn.Sequential(Scaled(3, 8, 2), nn.Linear(8, 8))
    as_products(module)
    assert type(module[0]) is Scaled and type(module[1]) is nn.Linear


@pytest.mark.parametrize("family", TOWERS)
def test_a_vectorized_tower_convolves_nothing(family: str) -> None:
    """So that float32 on a GPU is float32, whatever torch makes of convolutions there."""
    model = TOWERS[family]()
    _, inputs = pack_for(model)
    with torch.no_grad(), Recorded() as own:
        outputs_of(model, inputs)
    with torch.no_grad(), Recorded() as ours:
        adapter_of(model).vectorized().model(inputs[0], grid_thw=inputs[1])
    assert own.convolves == (family != "cosmos3_edge")
    assert not ours.convolves
