"""Faults of models/: positions, poolings and what is said of photos."""

from __future__ import annotations

from code_mutants.mutant import CodeMutant

PREPROCESSING = ("tests/models/test_preprocessing.py",)
SIGLIP2 = "tests/models/test_siglip2.py::test_"
TIMM = "tests/models/test_timm_naflex.py::test_"

MODELS = (
    CodeMutant(
        "the aspect is lost where one side is the source's",
        "models/timm_naflex.py",
        "(grid_B2 == source_2).all(dim=1, keepdim=True)",
        "(grid_B2 == source_2).any(dim=1, keepdim=True)",
        (f"{TIMM}aspect_is_kept_for_every_grid",),
    ),
    CodeMutant(
        "the masked maximum reads padding",
        "models/timm_naflex.py",
        "read_BNC.masked_fill(~valid_BN.unsqueeze(-1),",
        "read_BNC.masked_fill(valid_BN.unsqueeze(-1) & False,",
        (f"{TIMM}the_graphs_own_pooling_equals_timms",),
    ),
    CodeMutant(
        "a model with RoPE alone counts as one that ignores coordinates",
        "models/timm_naflex.py",
        'embeds.pos_embed_type != "none" or self.model.rope is not None',
        'embeds.pos_embed_type != "none"',
        (f"{TIMM}coordinates_are_ignored_by_models_that_have_no_use_for_them",),
    ),
    CodeMutant(
        "a folded patch weight ignores channels-first",
        "models/timm_patch_size.py",
        "embeds.patch_size, size, resampling, channels_last=last)",
        "embeds.patch_size, size, resampling, channels_last=True)",
        ("tests/serving/test_patch_sizes.py::test_a_folded_weight_equals_timms_own_resampling",),
    ),
    CodeMutant(
        "mean and standard deviation swapped in the manifest",
        "models/timm_naflex.py",
        "mean=tuple(settings.mean),\n            std=tuple(settings.std),",
        "mean=tuple(settings.std),\n            std=tuple(settings.mean),",
        PREPROCESSING,
    ),
    CodeMutant(
        "mean and standard deviation swapped in the transform",
        "models/timm_naflex.py",
        'mean=settings["mean"],\n            std=settings["std"],',
        'mean=settings["std"],\n            std=settings["mean"],',
        PREPROCESSING,
    ),
    CodeMutant(
        "the interpolation of photos dropped",
        "models/timm_naflex.py",
        '            interpolation=settings["interpolation"],\n',
        "",
        PREPROCESSING,
    ),
    CodeMutant(
        "the order of a patch's values dropped",
        "models/timm_naflex.py",
        'order = {} if settings["channels_last"] else {"patchify_channels_last": False}',
        "order: dict[str, bool] = {}",
        PREPROCESSING,
    ),
    CodeMutant(
        "the processor beside a model's weights ignored",
        "models/siglip2.py",
        "return Siglip2ImageProcessor.from_pretrained(origin), origin",
        "return Siglip2ImageProcessor(), origin",
        PREPROCESSING,
    ),
    CodeMutant(
        "patches in another order than their coordinates",
        "models/siglip2.py",
        "torch.tensor(grid.coordinates())",
        "torch.tensor(grid.coordinates()).flip(-1)",
        PREPROCESSING,
    ),
    CodeMutant(
        "a width of zero is divided by",
        "models/siglip2.py",
        "row_BN = token_BN // width_B1.clamp(min=1)",
        "row_BN = token_BN // width_B1",
        (f"{SIGLIP2}a_grid_without_cells_harms_no_other_image",),
    ),
)
