"""`vectorize` against timm's eager loop."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import tiny
import torch
from timm.models import NaFlexVit
from torch import Tensor, nn

import naflex_export as nx
from naflex_export.batch import Batch, noise_batch
from naflex_export.grid import Grid
from naflex_export.models.self_check import check_embedding

EMBEDS = [
    pytest.param({}, id="bicubic-aa"),
    pytest.param({"pos_embed_interp_mode": "bilinear"}, id="bilinear-aa"),
    pytest.param({"pos_embed_antialias": False}, id="bicubic"),
    pytest.param({"pos_embed_antialias": False, "pos_embed_align_corners": True}, id="bicubic-ac"),
    pytest.param({"pos_embed_ar_preserving": True}, id="aspect-preserving"),
    pytest.param({"pos_embed_ar_preserving": True, "pos_embed_grid_size": (3, 7)}, id="aspect-preserving-g3x7"),
    pytest.param({"pos_embed_grid_size": (9, 5)}, id="g9x5"),
]


def call(model: nn.Module, batch: Batch) -> Tensor:
    return model(batch.patches, batch.patch_coord, batch.patch_valid)


def tokens(model: nn.Module, batch: Batch) -> Tensor:
    encoded = model.forward_features(batch.patches, batch.patch_coord, batch.patch_valid)
    return encoded["patches"][batch.patch_valid]


def share(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference as a share of the largest value."""
    found, expected = found.detach(), expected.detach()
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.full), 12])
def test_every_grid_up_to_1024_patches(every: int) -> None:
    """All 7,262 grids, or each 12th: embeds to 1e-6 of their scale, padding included; valid tokens to 1e-5.

    Of all grids the encoder, which knows of none but by its embeds, sees each eighth batch.
    """
    eager = tiny.naflexvit(embed_dim=16, depth=1, num_heads=1, patch_size=1)
    fast = nx.vectorize(eager)
    grids = [Grid(h, w) for h in range(1, 1025) for w in range(1, 1024 // h + 1)]
    grids.sort(key=lambda grid: grid.tokens)  # so that little of a batch is padding
    assert len(grids) == 7262
    grids = grids[::every]
    with torch.no_grad():
        for start in range(0, len(grids), 32):
            chunk = grids[start : start + 32]
            batch = noise_batch(f"every-{start}", chunk, chunk[-1].tokens, 3)
            expected, _ = eager.embeds(batch.patches, batch.patch_coord)
            found, _ = fast.embeds(batch.patches, batch.patch_coord)
            assert share(found, expected) <= 1e-6, (chunk[0], chunk[-1])
            if every > 1 or start % (8 * 32) == 0:
                assert share(tokens(fast, batch), tokens(eager, batch)) <= 1e-5, (chunk[0], chunk[-1])


@pytest.mark.parametrize("options", EMBEDS)
def test_outputs_equal_eager(options: dict[str, object], mixed: Batch) -> None:
    eager = tiny.naflexvit(**options)
    fast = nx.vectorize(eager)
    batch = noise_batch("with-source-grid", [*mixed.grids, Grid(3, 7), Grid(16, 16)], 256, 48)
    with torch.no_grad():
        assert share(fast.embeds(*inputs(batch)[:2])[0], eager.embeds(*inputs(batch)[:2])[0]) <= 1e-6
        assert share(call(fast, batch), call(eager, batch)) <= 1e-5
        assert share(tokens(fast, batch), tokens(eager, batch)) <= 1e-5


def inputs(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    return batch.patches, batch.patch_coord, batch.patch_valid


@pytest.mark.parametrize("options", EMBEDS)
def test_gradients_equal_eager(options: dict[str, object], mixed: Batch) -> None:
    """Every parameter's, of a sum over the output weighted at random, to 1e-5 of the gradient's scale."""
    eager = tiny.naflexvit(**options).train()
    fast = nx.vectorize(copy.deepcopy(eager))
    weight = torch.randn(32, generator=torch.Generator().manual_seed(5))
    for model in (eager, fast):
        (call(model, mixed) * weight).sum().backward()
    for (name, expected), found in zip(eager.named_parameters(), fast.parameters(), strict=True):
        assert expected.grad is not None and expected.grad.abs().max() > 0, name
        if name.endswith(("kv.bias", "qkv.bias")):
            continue  # a bias on the keys cancels in the softmax: its gradient is rounding noise
        assert share(found.grad, expected.grad) <= 1e-5, name


def test_gradients_of_the_embeds_include_padding(mixed: Batch) -> None:
    """A loss over all tokens, padding too: what padding adds to the gradients must be eager's."""
    eager = tiny.siglip().train()
    fast = nx.vectorize(copy.deepcopy(eager))
    weight = torch.randn(6, 26, 32, generator=torch.Generator().manual_seed(5))
    for model in (eager, fast):
        (model.embeds(mixed.patches, mixed.patch_coord)[0] * weight).sum().backward()
    for name in ("pos_embed", "proj.weight", "proj.bias"):
        expected, found = eager.embeds.get_parameter(name).grad, fast.embeds.get_parameter(name).grad
        assert share(found, expected) <= 1e-5, name


def test_shares_parameters_and_leaves_the_original_untouched(siglip: nn.Module, mixed: Batch) -> None:
    before = {name: tensor.clone() for name, tensor in siglip.state_dict().items()}
    classes = [type(module) for module in siglip.modules()]
    fast = nx.vectorize(siglip)
    assert type(fast) is type(siglip) is NaFlexVit and fast is not siglip
    assert list(fast.state_dict()) == list(siglip.state_dict())
    pairs = zip(siglip.parameters(), fast.parameters(), strict=True)
    assert all(one is other for one, other in pairs)
    call(fast, mixed)
    assert [type(module) for module in siglip.modules()] == classes
    assert all(torch.equal(tensor, before[name]) for name, tensor in siglip.state_dict().items())
    assert nx.vectorize(fast) is fast


def test_a_step_on_one_is_a_step_on_the_other(mixed: Batch) -> None:
    eager = tiny.siglip()
    fast = nx.vectorize(eager)
    with torch.no_grad():
        eager.embeds.pos_embed.add_(1.0)
        assert share(call(fast, mixed), call(eager, mixed)) <= 1e-5
    fast.load_state_dict(tiny.naflexvit(init_values=None).state_dict())
    assert torch.equal(eager.embeds.pos_embed, fast.embeds.pos_embed)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_dtypes_resample_in_float32_and_cast(dtype: torch.dtype, mixed: Batch) -> None:
    """As eager does. One rounding of the cast may fall the other way, so half precision is equal to one step."""
    eager = tiny.siglip().to(dtype)
    fast = nx.vectorize(eager)
    step = torch.finfo(dtype).eps if dtype != torch.float64 else 1e-6
    with torch.no_grad():
        expected, _ = eager.embeds(mixed.patches.to(dtype), mixed.patch_coord)
        found, _ = fast.embeds(mixed.patches.to(dtype), mixed.patch_coord)
    assert found.dtype == dtype
    assert share(found.double(), expected.double()) <= step


def test_autocast_equals_eager(siglip: nn.Module, mixed: Batch) -> None:
    fast = nx.vectorize(siglip)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected, _ = siglip.embeds(mixed.patches, mixed.patch_coord)
        found, _ = fast.embeds(mixed.patches, mixed.patch_coord)
    assert found.dtype == expected.dtype == torch.bfloat16
    assert share(found.float(), expected.float()) <= torch.finfo(torch.bfloat16).eps


def test_dict_and_image_inputs_keep_working(classifier: nn.Module, mixed: Batch) -> None:
    fast = nx.vectorize(classifier)
    images = torch.randn(2, 3, 20, 36, generator=torch.Generator().manual_seed(2))
    named = {"patches": mixed.patches, "patch_coord": mixed.patch_coord, "patch_valid": mixed.patch_valid}
    with torch.no_grad():
        assert torch.equal(fast(images), classifier(images))
        assert torch.equal(fast(named), call(fast, mixed))
        assert share(fast(named), classifier(named)) <= 1e-5


def test_train_mode_and_dropout_follow_the_original(mixed: Batch) -> None:
    eager = tiny.naflexvit(drop_path_rate=0.3, proj_drop_rate=0.2).train()
    fast = nx.vectorize(eager)
    assert fast.training
    results = []
    for model in (eager, fast):
        torch.manual_seed(3)
        results.append(call(model, mixed))
    assert share(results[1], results[0]) <= 1e-5
    assert share(call(fast, mixed), results[0]) > 1e-2  # dropout is on


def test_a_wrong_resize_would_be_seen(mixed: Batch) -> None:
    """The bounds above can fail: without antialias the embeds are far outside theirs."""
    eager, other = tiny.siglip(), tiny.naflexvit(pos_embed_antialias=False)
    with torch.no_grad():
        expected, _ = eager.embeds(mixed.patches, mixed.patch_coord)
        found, _ = nx.vectorize(other).embeds(mixed.patches, mixed.patch_coord)
    assert share(found, expected) > 1e-2


def test_models_of_other_kinds_are_refused() -> None:
    with pytest.raises(nx.UnsupportedModelError, match=r"torch\.nn\.modules\.linear\.Linear is no model .* NaFlexVit"):
        nx.vectorize(nn.Linear(2, 2))
    classic = timm.create_model("vit_tiny_patch16_224", depth=1)
    with pytest.raises(nx.UnsupportedModelError, match="VisionTransformer is no model this release knows"):
        nx.vectorize(classic)


def test_a_subclass_of_the_embeds_is_refused() -> None:
    model = tiny.siglip()

    class Other(type(model.embeds)):  # type: ignore[misc]
        pass

    model.embeds.__class__ = Other
    with pytest.raises(nx.UnsupportedModelError, match="embeds are a .*Other, not timm's NaFlexEmbeds"):
        nx.vectorize(model)


def test_a_model_of_other_channels_is_vectorized_as_any() -> None:
    model = tiny.naflexvit(in_chans=1)
    assert nx.vectorize(model) is not model


def test_the_look_at_the_embedding_copies_no_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a base model a second copy of the blocks takes ten times what the rest of the look does."""
    model, copied = tiny.siglip(), []

    def counted(block: nn.Module, memo: dict[int, Any]) -> nn.Module:
        copied.append(block)
        twin = type(block).__new__(type(block))
        memo[id(block)] = twin
        twin.__dict__.update(copy.deepcopy(vars(block), memo))
        return twin

    monkeypatch.setattr(type(model.blocks[0]), "__deepcopy__", counted, raising=False)
    looked = []
    name = "naflex_export.models.vectorize.check_embedding"
    monkeypatch.setattr(name, lambda *given: looked.append(check_embedding(*given)))
    nx.vectorize(model)
    assert len(copied) == len(model.blocks) == 2 and looked == [None]
