"""What this release knows of timm's options; a model with any other is refused by name.

A newer timm may add an option that changes what a position embedding means. Were it ignored, the vectorized model would
come out wrong, so names are compared with those of timm 1.0.31 before anything is converted. An older timm lacks some
of them; what it does in their place is the default that a newer one has, but for what `_refuse_old` names.
"""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

from timm import __version__ as timm_version
from timm.layers import pos_embed_sincos
from timm.models import NaFlexVit
from timm.models.naflexvit import NaFlexEmbeds, NaFlexVitCfg
from torch import nn

from naflex_export.errors import UnsupportedModelError
from naflex_export.models.copies import replaced_methods

OLD_DEFAULTS: dict[str, Any] = {
    "pos_embed_antialias": True,
    "pos_embed_align_corners": False,
    "use_key_only_attn_mask": False,
    "channels_last": True,
    "rotate_half": False,
    "aug_active": False,
    "shift_coords": None,
    "jitter_coords": None,
    "rescale_coords": None,
}
"""What timm did before it had these options."""

ROPE_SINCE = (1, 0, 31)
"""The release since which all of RoPE's options mean what `timm_rope` computes."""


def option_of(module: Any, name: str) -> Any:
    """Return an option of timm's that a release may lack, with what it does then."""
    return getattr(module, name, OLD_DEFAULTS[name])


def is_rope(rope: Any, name: str) -> bool:
    """Whether a module is just the one of timm's RoPE modules; some releases lack some."""
    return type(rope) is getattr(pos_embed_sincos, name, None)


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


CFG = _names("""
    patch_size embed_dim depth num_heads mlp_ratio scale_mlp_norm num_kv_heads qkv_bias qk_norm proj_bias attn_drop_rate
    scale_attn_inner_norm use_key_only_attn_mask init_values drop_rate pos_drop_rate patch_drop_rate proj_drop_rate
    drop_path_rate class_token reg_tokens pos_embed pos_embed_grid_size pos_embed_interp_mode pos_embed_ar_preserving
    pos_embed_antialias pos_embed_align_corners pos_embed_use_grid_sample rope_type rope_temperature rope_ref_feat_shape
    rope_grid_offset rope_grid_indexing rope_rotate_half rope_shift_coords rope_jitter_coords rope_rescale_coords
    rope_mrope_section dynamic_img_pad patchify_channels_last pre_norm final_norm fc_norm global_pool
    pool_include_prefix attn_pool_num_heads attn_pool_mlp_ratio weight_init fix_init embed_proj_type input_norm_layer
    embed_norm_layer norm_layer act_layer block_fn mlp_layer attn_layer attn_type attn_gated swiglu_mlp swiglu_align_to
    qkv_fused attn_only_layer_scale enable_patch_interpolator
""")
"""Fields of `NaFlexVitCfg`."""

EMBEDS = _names("""
    channels_last cls_token default_img_size dynamic_img_pad embed_dim enable_patch_interpolator flatten has_class_token
    in_chans is_linear norm norm_input num_prefix_tokens num_reg_tokens patch_interpolator patch_size pos_drop pos_embed
    pos_embed_align_corners pos_embed_antialias pos_embed_ar_preserving pos_embed_grid_size pos_embed_interp_mode
    pos_embed_type pos_embed_use_grid_sample pos_embed_x pos_embed_y proj reg_token supports_patch_interpolation
""")
"""What a `NaFlexEmbeds` holds: options, parameters and modules."""

_ALL_ROPES = _names("dim temperature grid_indexing aug_active shift_coords jitter_coords rescale_coords")

_HELD_BY_ROPE = {
    "RotaryEmbeddingCat": _ALL_ROPES
    | _names("""
        bands feat_shape grid_offset grid_type in_pixels linear_bands max_res normalize_coords pos_embed ref_feat_shape
        rotate_half
    """),
    "RotaryEmbeddingDinoV3": _ALL_ROPES
    | _names("""
        feat_shape grid_offset max_period min_period normalize_coords periods pos_embed_cached rotate_half
    """),
    "RotaryEmbeddingMRope": _ALL_ROPES | _names("axis inv_freq mrope_section"),
    "RotaryEmbeddingMixed": _ALL_ROPES | _names("depth feat_shape freqs num_heads t_x t_y"),
}

ROPES: dict[type[nn.Module], frozenset[str]] = {
    getattr(pos_embed_sincos, name): held for name, held in _HELD_BY_ROPE.items() if hasattr(pos_embed_sincos, name)
}
"""The RoPE modules that a `NaFlexVit` may have, and what each holds."""


def refuse_unknown(model: NaFlexVit) -> None:
    """Check that every option of a model is one this release was written for.

    Raises:
        UnsupportedModelError: one is not; the message names it.
    """
    embeds, rope = model.embeds, model.rope
    if type(embeds) is not NaFlexEmbeds:
        raise UnsupportedModelError(
            f"the model's embeds are a {type(embeds).__qualname__}, not timm's NaFlexEmbeds: "
            "a subclass may resize its grid in a way we cannot know"
        )
    _refuse_names({field.name for field in fields(NaFlexVitCfg)} - CFG, "NaFlexVitCfg")
    _refuse_names(_held_by(embeds) - EMBEDS, "NaFlexEmbeds")
    if embeds.pos_embed_type not in ("learned", "factorized", "none"):
        raise UnsupportedModelError(
            f"pos_embed={embeds.pos_embed_type!r} is not supported: expected 'learned', 'factorized' or 'none'"
        )
    if embeds.pos_embed_type == "learned" and embeds.pos_embed_interp_mode not in ("bilinear", "bicubic"):
        raise UnsupportedModelError(
            f"pos_embed_interp_mode={embeds.pos_embed_interp_mode!r} is not supported: expected 'bilinear' or 'bicubic'"
        )
    if rope is None:
        return
    if type(rope) not in ROPES:
        known = ", ".join(kind.__qualname__ for kind in ROPES)
        raise UnsupportedModelError(f"the model's rope is a {type(rope).__qualname__}: expected timm's own {known}")
    if type(model) is not NaFlexVit:
        raise UnsupportedModelError(
            f"{type(model).__qualname__} is a subclass of NaFlexVit with RoPE: it may make its angles in a way we "
            "cannot know; expected NaFlexVit itself"
        )
    _refuse_names(_held_by(rope) - ROPES[type(rope)], type(rope).__qualname__)
    _refuse_old(rope)


def _refuse_old(rope: nn.Module) -> None:
    """Check that an older timm's RoPE has no option that meant something else then.

    Raises:
        UnsupportedModelError: it has one.
    """
    release = tuple(int(part) for part in re.findall(r"\d+", timm_version)[:3])
    if release >= ROPE_SINCE:
        return
    changed = ("ref_feat_shape", "shift_coords", "jitter_coords", "rescale_coords")
    for name in changed:
        if getattr(rope, name, None) is not None:
            raise UnsupportedModelError(
                f"`{name}` of timm {timm_version} is not known here: RoPE did something else with it before timm "
                "1.0.31; install timm 1.0.31 or newer"
            )


def _held_by(module: nn.Module) -> set[str]:
    """Return the public names that a module's constructor made: attributes, parameters, buffers and submodules."""
    held = {*vars(module), *module._parameters, *module._buffers, *module._modules} - set(replaced_methods(module))
    return {name for name in held - set(vars(nn.Module())) if not name.startswith("_")}


def _refuse_names(names: set[str], owner: str) -> None:
    if names:
        from naflex_export.version import __version__

        listed = ", ".join(f"`{name}`" for name in sorted(names))
        raise UnsupportedModelError(
            f"{listed} is not known to naflex_export {__version__}: timm's {owner} had no such option when this "
            "release was written, and it may change the result. Use a newer naflex_export, or timm 1.0.31"
        )
