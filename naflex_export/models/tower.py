"""Vision towers of transformers' multimodal models, which take packs only: what all of their families have in common.

A family is a tower's class and a subclass of it, whose forward is the tower's own but for what looks at the grids: the
position embedding, by our resampling, and attention, which is given a `Packing` where it expects lengths. A vectorized
tower takes `positions` besides, as many as the longest image has tokens, so that no shape depends on a value.

Shape legend: as in `packing.py`; M patches of a token, U tokens of all images, T = M * U patches.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn

from naflex_export.errors import InputError, RequestError, UnsupportedModelError
from naflex_export.models.adapter import ModelAdapter, refuse_replaced
from naflex_export.models.copies import shared_copy
from naflex_export.models.one_window import as_products
from naflex_export.models.original import Original, is_watched
from naflex_export.models.packing import Packing, attend
from naflex_export.models.preprocessing import GIVEN
from naflex_export.models.tower_checks import check_heads
from naflex_export.resample.stored import Axis
from naflex_export.resample.weights import reads_few_cells
from naflex_export.serving.input_formats import can_be_checked
from naflex_export.serving.tower_format import TowerFormat

if TYPE_CHECKING:
    from PIL.Image import Image

Rotary = tuple[Tensor, Tensor]
"""Cosines and sines [T, width of a head] of each patch's angles."""


class VectorizedTower(nn.Module):
    """What a vectorized tower has besides its own class; the first of its classes.

    Attributes:
        original: the model that this one was made from.
        input_format: how the tower takes a batch.
    """

    original = Original()
    input_format: TowerFormat

    if TYPE_CHECKING:  # what a tower consists of has no types

        def __getattr__(self, name: str) -> Any: ...

    def packing(self, patches: Tensor, grid_thw: Tensor, positions: Tensor | None) -> Packing:
        """Return where the patches of a call lie.

        Args:
            patches: as the tower takes them.
            grid_thw: [B, 3] frames, height and width of each image.
            positions: [N] as many as the longest image has tokens; by default found out, which looks at the grids.

        Raises:
            InputError: the grids are no tensor; on a CPU, they are not those of the patches, or the positions not
                those of the grids.
        """
        form = self.input_format
        if not isinstance(grid_thw, Tensor):
            raise InputError(
                f"{form.names[1]} is a {type(grid_thw).__name__}: expected a tensor [images, {form.grid_values}]"
            )
        checks = can_be_checked((grid_thw,) if positions is None else (grid_thw, positions))
        if is_watched():
            self.original.warn_of_changes()
        if checks:
            form.check_grid_shape(grid_thw)
        count = patches.shape[1] if form.in_batch else patches.shape[0]
        grid_B3 = grid_thw.long()
        if positions is None:
            positions = form.positions_of(grid_B3)
        if checks:
            form.check_live(count, grid_B3, positions)
        if form.merge > 1:
            per_token = form.merge**2
            patch_M = torch.arange(per_token, device=grid_B3.device)
            # expanded first, as in `Packing`: of a sum of two lines of numbers ONNX's rules think that it is a shape
            first_NM = (positions * per_token).unsqueeze(1).expand(positions.shape[0], per_token)
            positions = (first_NM + patch_M).flatten()
        return Packing.of_grids(grid_B3[:, -2:], count, positions, 1 if form.by_rows else form.merge)


def rotary_attention(attention: Any, qkv: tuple[Tensor, Tensor, Tensor], packing: Packing, rotary: Rotary) -> Tensor:
    """Return attention of each image's patches to its own, with queries and keys rotated in float32, [T, C].

    Args:
        attention: the module, for its heads, scale and dropout.
        qkv: queries, keys and values [T, C].
        packing: of the patches.
        rotary: of the patches.
    """
    query, key = (rotated(rows, attention.num_heads, rotary) for rows in qkv[:2])
    dropout = attention.attention_dropout if attention.training else 0.0
    return attend((query, key, qkv[2]), attention.num_heads, packing, scale=attention.scaling, dropout=dropout)


def rotated(rows_TC: Tensor, num_heads: int, rotary: Rotary) -> Tensor:
    """Return queries or keys with the two halves of each head turned by its patch's angles, as transformers does it.

    Args:
        rows_TC: the queries or keys.
        num_heads: that C holds.
        rotary: of the patches.
    """
    cos_T1D, sin_T1D = (angles.unsqueeze(1).float() for angles in rotary)
    heads_THD = rows_TC.view(rows_TC.shape[0], num_heads, rows_TC.shape[1] // num_heads).float()
    first, second = heads_THD.chunk(2, dim=-1)
    turned = heads_THD * cos_T1D + torch.cat([-second, first], dim=-1) * sin_T1D
    return turned.to(rows_TC.dtype).flatten(1)


class JoinedQkvAttention(nn.Module):
    """Attention that projects queries, keys and values at once, within each image of a pack; ahead of a tower's own."""

    def forward(self, hidden_states: Tensor, cu_seqlens: Any, position_embeddings: Any = None, **kwargs: Any) -> Tensor:
        """Return what the class itself gives, for lengths of a `Packing` too."""
        own: Any = self
        if not isinstance(cu_seqlens, Packing):
            return cast(Tensor, super().forward(hidden_states, cu_seqlens, position_embeddings, **kwargs))
        rows = self.projected(hidden_states)
        return cast(Tensor, own.proj(rotary_attention(own, rows, cu_seqlens, position_embeddings)))

    def projected(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values [T, C].

        Args:
            hidden_states: [T, C].
        """
        own: Any = self
        query, key, value = own.qkv(hidden_states).chunk(3, dim=-1)
        return query, key, value


class TowerEncoder(nn.Module):
    """A tower whose forward returns a tuple of the outputs asked for."""

    def __init__(self, adapter: TowerAdapter, outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model = adapter.tower
        self.outputs, self._unpack = outputs, adapter.unpack
        self._extra = adapter.is_vectorized

    def forward(self, hidden_states: Tensor, grid_thw: Tensor, positions: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs asked for."""
        return self.outputs_of(hidden_states, grid_thw, positions=positions)

    def outputs_of(self, patches: Tensor, grid_thw: Tensor, **follow: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs asked for; an untouched tower takes nothing that follows from its grids.

        Args:
            patches: as the tower takes them.
            grid_thw: [B, 3].
            follow: `positions`, and `rows` where the tower marks them.
        """
        given = self.model(patches, grid_thw, **(follow if self._extra else {}))
        made = self._unpack(given)
        return tuple(made[name] for name in self.outputs)


class PixelEncoder(TowerEncoder):
    """The same of a tower that calls its patches pixels: a graph's inputs are called as its forward's are."""

    def forward(self, pixel_values: Tensor, grid_thw: Tensor, positions: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs asked for."""
        return self.outputs_of(pixel_values, grid_thw, positions=positions)


class SidesEncoder(TowerEncoder):
    """The same of a tower whose grids are sides alone."""

    def forward(self, pixel_values: Tensor, image_grid_hw: Tensor, positions: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs asked for."""
        return self.outputs_of(pixel_values, image_grid_hw, positions=positions)


class MarkedRowsEncoder(TowerEncoder):
    """The same of a tower that marks the ends of rows, with one more input."""

    def forward(  # type: ignore[override]
        self, pixel_values: Tensor, grid_thw: Tensor, positions: Tensor, rows: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the outputs asked for."""
        return self.outputs_of(pixel_values, grid_thw, positions=positions, rows=rows)


class _Reached(Exception):
    """What the first block of a tower is given."""

    def __init__(self, seen: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.seen = seen


class _End(nn.Module):
    """Stands in a tower for its blocks, and ends the call where the first of them begins."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Raise what is given."""
        raise _Reached((hidden_states, *(kwargs.get("position_embeddings") or ())))


class TowerEmbedding(nn.Module):
    """All that a tower does ahead of its first block: its patches with their positions, and their rotary angles."""

    def __init__(self, adapter: TowerAdapter) -> None:
        super().__init__()
        ended = adapter.with_blocks(nn.ModuleList([_End()]))
        self.encoder = ended.encoder_class(ended, ())

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return patches [T, C], and where there are any cosines and sines [T, width of a head]."""
        try:
            self.encoder(*inputs)
        except _Reached as reached:
            return reached.seen
        raise AssertionError("the tower has no blocks, and one was put there")


class TowerAdapter(ModelAdapter):
    """Of a vision tower of transformers.

    Attributes:
        tower_class: the tower's own, of transformers.
        twins: the class that stands in for each of transformers' classes in a vectorized tower.
        children: the modules that a tower of this family consists of, by name.
        fields: what its forward gives, in order, where it is asked for a tuple.
    """

    package = "transformers"
    input_format: TowerFormat
    tower_class: ClassVar[type[nn.Module]]
    twins: ClassVar[Mapping[type[nn.Module], type[nn.Module]]]
    children: ClassVar[frozenset[str]]
    blocks: ClassVar[str] = "blocks"
    fields: ClassVar[tuple[str, ...]] = ("last_hidden_state", "pooler_output", "deepstack_features")
    model: Any

    def __init__(self, model: Any, patch_size: int | None = None, given: Mapping[str, Any] | None = None) -> None:
        super().__init__(model, patch_size, given)
        self.input_format = self.format_of(model)

    @classmethod
    def owns(cls, model: Any) -> bool:
        return isinstance(model, cls.tower_class)

    @classmethod
    def format_of(cls, model: Any) -> TowerFormat:
        """Return how a tower takes a batch: by default flat patches, those of a token one after the other."""
        config = model.config
        values = config.in_channels * config.temporal_patch_size * config.patch_size**2
        return TowerFormat("hidden_states", (values,), config.spatial_merge_size)

    def named_outputs(self, given: Any) -> dict[str, Tensor]:
        """Return what a call of the tower gave, by the outputs' names: by default the merged tokens alone."""
        return {"tokens": given.pooler_output}

    def check_options(self) -> None:
        """Check the options of the tower, each of which this release has to know.

        Raises:
            UnsupportedModelError: it does not know one; the message names it.
        """

    @property
    def learned_grid(self) -> Axis | None:
        """The side of the tower's learned grid, a square, and how it is resized; None of rotary positions alone."""
        return None

    @property
    def position_axes(self) -> tuple[Axis, ...]:
        if self.learned_grid is None:
            return ()
        side, resampling = self.learned_grid
        return () if reads_few_cells((side, side), resampling) else (self.learned_grid,)

    @property
    def is_vectorized(self) -> bool:
        return isinstance(self.model, VectorizedTower)

    @property
    def own_class(self) -> type[nn.Module]:
        """The tower's own class of transformers."""
        return self.tower_class

    @property
    def own_twins(self) -> Mapping[type[nn.Module], type[nn.Module]]:
        """The class that stands in for each of transformers' classes."""
        return self.twins

    @property
    def own_children(self) -> frozenset[str]:
        """The modules that the tower has to consist of, by name."""
        return self.children

    def vectorized(self) -> Self:
        if self.is_vectorized:
            return self
        own_class, twins, children = self.own_class, self.own_twins, self.own_children
        if type(self.model) is not own_class:
            raise UnsupportedModelError(
                f"{type(self.model).__qualname__} is a subclass of {own_class.__qualname__}, whose forward may "
                f"do more than ours is known to do: expected {own_class.__qualname__} itself"
            )
        known = {name for name, _ in self.model.named_children()}
        if known != children:
            differs = min(known ^ children)
            raise UnsupportedModelError(
                f"the {own_class.__qualname__} of this release of transformers has "
                f"{f'a module {differs!r}' if differs in known else f'no module {differs!r}'}: expected "
                f"{', '.join(sorted(children))}; this release of naflex_export was not written for it"
            )
        self.check_options()
        check_heads(self.model, twins)
        twin = self.of(shared_copy(self.model))
        found = set()
        for name, module in twin.model.named_modules():
            if type(module) in twins:
                refuse_replaced(module, ("forward",), name or "the tower")
                found.add(type(module))
                module.__class__ = twins[type(module)]
            elif any(isinstance(module, kind) for kind in twins):
                raise UnsupportedModelError(
                    f"{name} is a {type(module).__qualname__}, a subclass of what transformers has there: expected its "
                    "own class"
                )
        for kind in twins.keys() - found:
            raise UnsupportedModelError(
                f"the tower holds no {kind.__qualname__}: expected one, as in the releases of transformers known here"
            )
        as_products(twin.model)
        vars(twin.model)["original"] = Original(self.model, twin.model)
        vars(twin.model)["input_format"] = self.input_format
        return twin

    @property
    def original(self) -> Original:
        return cast(Original, self.model.original) if self.is_vectorized else Original()

    @property
    def default_outputs(self) -> tuple[str, ...]:
        return ("tokens",)

    def encoder(self, outputs: tuple[str, ...]) -> nn.Module:
        known = self.default_outputs
        if not outputs or len(set(outputs)) != len(outputs) or not set(outputs) <= set(known):
            raise RequestError(f"outputs={outputs!r}: expected some of {', '.join(map(repr, known))}, each once")
        return self.encoder_class(self, outputs)

    @property
    def encoder_class(self) -> type[TowerEncoder]:
        """The class of encoders whose forward names its inputs as the tower's own does."""
        if self.input_format.marks_rows:
            return MarkedRowsEncoder
        if self.input_format.names[1] == "image_grid_hw":
            return SidesEncoder
        return PixelEncoder if self.input_format.names[0] == "pixel_values" else TowerEncoder

    def unpack(self, output: Any) -> Any:
        if isinstance(output, Tensor) or type(output) is dict:
            return output
        if isinstance(output, tuple):  # what return_dict=False makes of it
            output = SimpleNamespace(**dict(zip(self.fields, output, strict=False)))
        return self.named_outputs(output)

    def with_blocks(self, blocks: nn.ModuleList) -> Self:
        """Return the adapter of the tower with other blocks, all else the same and shared."""
        twin = self.of(shared_copy(self.model))
        *holders, last = self.blocks.split(".")
        setattr(twin.model.get_submodule(".".join(holders)), last, blocks)
        return twin

    def embedding(self) -> nn.Module:
        return TowerEmbedding(self)

    def without_position(self) -> Self:
        raise UnsupportedModelError(f"a model of {self.name} has no form without its position embedding")

    @property
    def token_width(self) -> int:
        return self.input_format.token_width(())

    @property
    def channels(self) -> int:
        config = self.model.config
        return int(getattr(config, "in_channels", getattr(config, "num_channels", 3)))

    @property
    def why_no_photos(self) -> str:
        return "the model is a vision tower, whose patches its own processor makes of photos"

    @property
    def remarks(self) -> tuple[str, ...]:
        return (f"{self.why_no_photos}: it is judged on generated batches alone",)

    def check_preprocessing(self) -> None:
        raise RequestError(f"preprocessing was given, and {self.why_no_photos}: leave it out")

    def preprocessing(self) -> dict[str, Any]:
        return {"settings_from": GIVEN if self.given else "the model's own processor", "channels": self.channels}

    def transform(self, tokens: int) -> Callable[[Image], dict[str, Tensor]]:
        raise UnsupportedModelError(f"{self.why_no_photos}: there is no transform of them")

    def describe(self) -> dict[str, Any]:
        config = self.model.config
        return {
            "architecture": type(self.model).__name__,
            "attention": config._attn_implementation,
            "vision_config": json.loads(config.to_json_string(use_diff=False)),
        }
