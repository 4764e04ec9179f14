"""Tiny vision towers of transformers' multimodal models, one a family, and packs for them."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import naflex_export as nx
from naflex_export.batch import Batch, noise_batch
from naflex_export.grid import Grid
from naflex_export.models import adapter_of
from naflex_export.models.model_sources import randomize

GRIDS = (Grid(3, 5), Grid(1, 1), Grid(4, 2), Grid(1, 9), Grid(6, 6))
"""In tokens: sides that no learned grid has, from a single token on."""


def qwen3_vl(**options: Any) -> nn.Module:
    from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

    sizes = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 24}
    patches = {"patch_size": 2, "num_position_embeddings": 25, "deepstack_visual_indexes": [0, 1]}
    return seeded(Qwen3VLVisionModel(Qwen3VLVisionConfig(**{**sizes, **patches, **options})))


def glm4v() -> nn.Module:
    from transformers.models.glm4v.configuration_glm4v import Glm4vVisionConfig
    from transformers.models.glm4v.modeling_glm4v import Glm4vVisionModel

    sizes = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 24}
    return seeded(Glm4vVisionModel(Glm4vVisionConfig(**sizes, patch_size=2, image_size=10)))


def qwen2_5_vl() -> nn.Module:
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

    sizes = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 24}
    windows = {"patch_size": 2, "window_size": 8, "fullatt_block_indexes": [1]}
    return seeded(Qwen2_5_VisionTransformerPretrainedModel(Qwen2_5_VLVisionConfig(**sizes, **windows)))


def kimi_k25(**options: Any) -> nn.Module:
    from transformers.models.kimi_k25.configuration_kimi_k25 import Kimi_K25VisionConfig
    from transformers.models.kimi_k25.modeling_kimi_k25 import Kimi_K25VisionModel

    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
    positions = {"patch_size": 2, "pos_emb_height": 5, "pos_emb_width": 5}
    return seeded(Kimi_K25VisionModel(Kimi_K25VisionConfig(**{**sizes, **positions, **options})))


def paddleocr_vl() -> nn.Module:
    from transformers.models.paddleocr_vl.configuration_paddleocr_vl import PaddleOCRVisionConfig
    from transformers.models.paddleocr_vl.modeling_paddleocr_vl import PaddleOCRVisionModel

    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
    return seeded(PaddleOCRVisionModel(PaddleOCRVisionConfig(**sizes, patch_size=2, image_size=10)))


def cosmos3_edge(**options: Any) -> nn.Module:
    from transformers.models.cosmos3_edge.configuration_cosmos3_edge import Cosmos3EdgeVisionConfig
    from transformers.models.cosmos3_edge.modeling_cosmos3_edge import Cosmos3EdgeVisionModel

    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
    return seeded(
        Cosmos3EdgeVisionModel(Cosmos3EdgeVisionConfig(**{**sizes, "patch_size": 2, "num_patches": 25, **options}))
    )


def hunyuan_vl(**options: Any) -> nn.Module:
    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
    names = ("hunyuan_vl", "HunYuanVLVisionConfig", "HunYuanVLVisionTransformer")
    return made(*names, **sizes, patch_size=2, max_image_size=10, text_hidden_size=24, **options)


def radio(**options: Any) -> nn.Module:
    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "mlp_ratio": 1.5}
    prefix = {"num_cls_tokens": 3, "num_registers": 2, "summary_idxs": [0, 2]}
    return made(
        "radio", "RadioConfig", "RadioModel", **{**sizes, **prefix, "patch_size": 2, "max_img_size": 10, **options}
    )


def radio_takes_packs() -> bool:
    """Whether the release's C-RADIO does: 5.17's does not."""
    from transformers.models.radio.modeling_radio import RadioModel

    return "image_grid_hw" in inspect.signature(RadioModel.forward).parameters


SIZES = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 24}


def made(package: str, config: str, tower: str, **sizes: Any) -> nn.Module:
    """Return a tower of a package of transformers, by the names of its classes."""
    configs = importlib.import_module(f"transformers.models.{package}.configuration_{package}")
    models = importlib.import_module(f"transformers.models.{package}.modeling_{package}")
    return seeded(getattr(models, tower)(getattr(configs, config)(**sizes)))


def qwen3_kin(package: str, config: str, tower: str) -> Callable[[], nn.Module]:
    patches = {"patch_size": 2, "num_position_embeddings": 25, "deepstack_visual_indexes": [0, 1]}
    return lambda: made(package, config, tower, **SIZES, **patches)


KIN: dict[str, Callable[[], nn.Module]] = {
    "qwen3_vl_moe": qwen3_kin("qwen3_vl_moe", "Qwen3VLMoeVisionConfig", "Qwen3VLMoeVisionModel"),
    "qwen3_omni_moe": qwen3_kin("qwen3_omni_moe", "Qwen3OmniMoeVisionEncoderConfig", "Qwen3OmniMoeVisionEncoder"),
    "qwen3_5": qwen3_kin("qwen3_5", "Qwen3_5VisionConfig", "Qwen3_5VisionModel"),
    "qwen3_5_moe": qwen3_kin("qwen3_5_moe", "Qwen3_5MoeVisionConfig", "Qwen3_5MoeVisionModel"),
    "qwen4_exp": qwen3_kin("qwen4_exp", "Qwen4ExpVisionConfig", "Qwen4ExpVisionModel"),
    "glm4v_moe": lambda: made(
        "glm4v_moe", "Glm4vMoeVisionConfig", "Glm4vMoeVisionModel", **SIZES, patch_size=2, image_size=10
    ),
    "qwen2_5_omni": lambda: made(
        *("qwen2_5_omni", "Qwen2_5OmniVisionEncoderConfig", "Qwen2_5OmniVisionEncoder"),
        **{**SIZES, "patch_size": 2, "window_size": 8, "fullatt_block_indexes": [1]},
    ),
    "qwen2_vl": lambda: made(
        *("qwen2_vl", "Qwen2VLVisionConfig", "Qwen2VisionTransformerPretrainedModel"),
        depth=2,
        embed_dim=32,
        hidden_size=24,
        num_heads=2,
        patch_size=2,
    ),
    **({"radio": radio} if radio_takes_packs() else {}),
}
"""Towers whose family another one stands for in most tests, one of rotary positions alone, one of grids of sides."""

TOWERS: dict[str, Callable[[], nn.Module]] = {
    "qwen3_vl": qwen3_vl,
    "glm4v": glm4v,
    "qwen2_5_vl": qwen2_5_vl,
    "kimi_k25": kimi_k25,
    "paddleocr_vl": paddleocr_vl,
    "cosmos3_edge": cosmos3_edge,
    "hunyuan_vl": hunyuan_vl,
}

OWN_GRAPHS = (*TOWERS, "qwen2_vl", *(["radio"] if "radio" in KIN else []))
"""Towers whose graph is one of its own; those of others differ from one of these in names of weights, in levels that
they lack, or in one product for three."""


def seeded(model: nn.Module) -> nn.Module:
    """Return a model with weights that all show in its outputs, in eval mode."""
    randomize(model, seed=1)
    return model.eval()


def pack_for(model: nn.Module, grids: tuple[Grid, ...] = GRIDS, name: str = "towers") -> tuple[Batch, list[Tensor]]:
    """Return a batch of noise for a tower, and what the tower takes of it."""
    adapter = adapter_of(model)
    batch = noise_batch(name, grids, max(grid.tokens for grid in grids), adapter.token_width)
    return batch, list(adapter.input_format.arrange(batch))


def outputs_of(model: Any, inputs: list[Tensor]) -> dict[str, Tensor]:
    """Return the outputs of a tower by name, for patches and grids."""
    given: dict[str, Tensor] = adapter_of(model).unpack(model(inputs[0], inputs[1]))
    return given


def far(given: Tensor, wanted: Tensor) -> float:
    """Return the largest difference as a share of the largest value."""
    return float((given - wanted).detach().abs().max() / wanted.detach().abs().max())


def gradients(model: nn.Module, inputs: list[Tensor]) -> dict[str, Tensor | None]:
    """Return the gradient of every parameter, by name, of the squares of all outputs."""
    named = dict(model.named_parameters())
    loss = torch.stack([output.square().sum() for output in outputs_of(model, inputs).values()]).sum()
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return dict(zip(named, found, strict=True))


def exported_far_from_eager(tower: nn.Module, target: str, folder: Path) -> float:
    """Export a tower with all that it gives; return how far the artifact is from it on packs that no trace has seen.

    Args:
        tower: in eval mode.
        target: to export to.
        folder: the artifact's, which is made.
    """
    outputs = adapter_of(tower).default_outputs
    artifact = nx.export(tower, target, folder, [nx.Bucket(40, (1, 3, 16))], outputs=outputs)
    assert artifact.report.passed and artifact.manifest.packed
    assert [spec.name for spec in artifact.manifest.outputs] == list(outputs)
    run, apart = nx.load(folder), [0.0]
    for grids in (GRIDS, (Grid(1, 1),), (Grid(5, 8),) * 2, tuple(Grid(1, side) for side in range(1, 17))):
        _, inputs = pack_for(tower, grids)
        given: Any = run(*inputs[:2])
        given = given if isinstance(given, dict) else {outputs[0]: given}
        wanted = outputs_of(tower, inputs)
        apart += [far(given[name], wanted[name]) for name in outputs]
    return max(apart)
