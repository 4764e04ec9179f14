"""Releases of timm older than the one at hand, by what they lack."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm_tiny import BATCH, call, naflexvit, share

import naflex_export as nx
from naflex_export.models import adapter_of, timm_known


def without(model: Any, names: tuple[str, ...]) -> Any:
    """Return the model as an older release would have made it: no module holds these options."""
    model.pretrained_cfg = {}
    for module in model.modules():
        for name in names:
            vars(module).pop(name, None)
    return model


LACKING = {
    "learned": ({}, ("pos_embed_antialias", "pos_embed_align_corners", "channels_last")),
    "rope": ({"pos_embed": "none", "rope_type": "axial"}, ("rotate_half", "aug_active", "grid_type", "shift_coords")),
}


@pytest.mark.parametrize("name", LACKING)
def test_an_option_that_a_release_lacks_has_its_old_meaning(name: str) -> None:
    options, names = LACKING[name]
    with torch.no_grad():
        expected = call(naflexvit(**options), BATCH)
        fast = nx.vectorize(without(naflexvit(**options), names))
        embeds = adapter_of(fast)
        assert not any(name in vars(module) for module in fast.modules() for name in names)
        (found,) = embeds.of(fast).encoder(("features",))(BATCH.patches, BATCH.patch_coord, BATCH.patch_valid)
    assert share(found, expected) <= 1e-5
    with pytest.warns(UserWarning, match=r"no mean, std, interpolation in its pretrained_cfg"):
        assert embeds.preprocessing()["channels_last"] is True
    assert embeds.describe()["pos_embed_antialias"] is True
    embeds.transform(32)


@pytest.mark.parametrize(
    "options",
    [
        {"rope_type": "axial", "rope_ref_feat_shape": (5, 6)},
        {"rope_type": "axial", "rope_shift_coords": 0.1},
        {"rope_type": "dinov3", "rope_rescale_coords": 2.0},
    ],
    ids=["reference", "shift", "rescale"],
)
def test_what_meant_something_else_in_an_older_release_is_refused(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = naflexvit(pos_embed="none", **options)
    nx.vectorize(model)
    monkeypatch.setattr(timm_known, "timm_version", "1.0.30")
    name = next(key for key in options if key != "rope_type").removeprefix("rope_")
    with pytest.raises(nx.UnsupportedModelError, match=f"`{name}` of timm 1.0.30 is not known here"):
        nx.vectorize(model)
    monkeypatch.setattr(timm_known, "timm_version", "1.0.32.dev0")
    nx.vectorize(model)
