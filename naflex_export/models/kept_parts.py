"""Which parts of a model a name keeps in float32, and which names keep what a module gives.

Names are those of modules and of `PRESETS`. A list of blocks has no call of its own, so its name means the blocks; a
module whose weights another one reads without calling it, as `nn.MultiheadAttention` does, cannot be kept alone.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from naflex_export.errors import RequestError
from naflex_export.models.encoder_adapter import EncoderAdapter
from naflex_export.models.text_tower import TextTower
from naflex_export.precision import ALL_LOW, PRESETS, Kept, Precision

Names = tuple[str, ...]


@dataclass(frozen=True)
class Tower:
    """A model's tower by the names of its parts.

    Attributes:
        modules: every module by its name.
        blocks: names of the blocks, in order.
        ahead: modules ahead of the blocks; empty where those are all that the tower has ahead of them.
    """

    modules: dict[str, nn.Module]
    blocks: Names
    ahead: Names = ()

    @classmethod
    def of(cls, adapter: EncoderAdapter) -> Tower:
        """Return the parts of a model; its blocks are the numbered modules that hold most of the weights."""
        modules = {name: module for name, module in adapter.tower.named_modules() if name}
        lists = [name for name, module in modules.items() if isinstance(module, nn.ModuleList | nn.Sequential)]
        longest = adapter.blocks or max(lists, key=lambda name: _num_weights(modules[name]), default=None)
        if longest is None:
            return cls(modules, ())
        blocks = tuple(f"{longest}.{name}" for name, _ in modules[longest].named_children())
        return cls(modules, blocks, adapter.ahead)

    def chosen_by(self, preset: str) -> list[str]:
        """Return the modules that a preset keeps, by name; `residual` and `softmax` keep more than modules."""
        if preset == "norm":
            return [name for name, module in self.modules.items() if is_norm(module)]
        if preset == "residual":
            parts = (f"{block}.{part}" for block in self.blocks for part, _ in self.modules[block].named_children())
            return [name for name in parts if "layerscale" in _kind(self.modules[name])]
        if preset in ("embedding", "pooling") and self.blocks:
            names, first = list(self.modules), self.blocks[0]
            holders = with_holders(first)
            ahead = self.ahead or tuple(name for name in names[: names.index(first)] if name not in holders)
            outside = [name for name in names if name not in holders and not is_within(name, self.blocks)]
            return [name for name in outside if is_within(name, ahead) == (preset == "embedding")]
        return []

    @property
    def attentions(self) -> Names:
        """Names of all that computes scores of attention, as far as classes say so."""
        return tuple(name for name, module in self.modules.items() if "attention" in _kind(module))

    def meant_by(self, name: str) -> list[str]:
        """Return the modules that a name keeps: of a preset, its own, or those of a list, that compute anything.

        Raises:
            RequestError: it is neither a preset nor a module, or one that cannot be kept alone.
        """
        if name in PRESETS:
            meant = [module for module in self.chosen_by(name) if not self._reader_of(module)]
        elif name not in self.modules:
            raise RequestError(self._unknown(name))
        elif reader := self._reader_of(name):
            raise RequestError(
                f"keep_float32 {name!r} cannot be kept alone: {reader} reads its weights without a call of it; "
                f"expected {reader!r}, or what holds that"
            )
        else:
            meant = [name]
        return [part for module in meant for part in self._called_in(module) if self.computes(part)]

    def computes(self, name: str) -> bool:
        """Whether a module has weights, or is a norm without."""
        module = self.modules[name]
        return _num_weights(module) > 0 or is_norm(module)

    def is_there(self, name: str, meant: Sequence[str]) -> bool:
        """Whether what a name stands for is there.

        Args:
            name: of a module or a preset.
            meant: what `meant_by` says of it.
        """
        if name == "residual":
            return bool(self.blocks)
        return bool(self.attentions if name == "softmax" else meant)

    def adds(self, name: str, meant: dict[str, list[str]]) -> bool:
        """Whether a name keeps anything that others do not.

        Args:
            name: one of those in `meant`.
            meant: the modules of each name.
        """
        others = tuple(module for other, kept in meant.items() if other != name for module in kept)
        own = self.attentions if name == "softmax" else meant[name]
        return name == "residual" or not all(is_within(module, others) for module in own)

    def _called_in(self, name: str) -> list[str]:
        """Return what is called of a module: itself, or the parts of a list, as blocks are."""
        module = self.modules[name]
        is_list = isinstance(module, nn.ModuleList) or any(block.rpartition(".")[0] == name for block in self.blocks)
        if not is_list:
            return [name]
        return [part for child, _ in module.named_children() for part in self._called_in(f"{name}.{child}")]

    def _reader_of(self, name: str) -> str:
        """Return the module that reads a module's weights without calling it; empty where there is none."""
        holders = with_holders(name) - {name}
        return next((one for one in holders if isinstance(self.modules[one], nn.MultiheadAttention)), "")

    def _unknown(self, name: str) -> str:
        close = close_names(name, (*PRESETS, *self.modules)) or [*self.blocks[:1], *list(self.modules)[:2]]
        return (
            f"keep_float32 {name!r} is no module of this model{no_pattern(name)}: expected {', '.join(PRESETS)}, auto "
            f"or a module's name, such as {', '.join(close)}"
        )


class PartsByName:
    """What is known of a model's parts by their names alone."""

    def stage_of(self, module: str) -> str:
        """Return "embedding" or "pooling" for what runs ahead of the blocks or after them; empty for all else."""
        return ""

    def keepable(self, module: str) -> str:
        """Return the module to keep so that this one computes in float32; empty where there is none."""
        return module

    def adding(self, names: Names) -> Names:
        """Return the names without those that keep nothing, or nothing that the others do not."""
        return names

    def why_no_more(self, dtype: str) -> str:
        """Return why nothing more can be kept on account of a module, in words.

        Args:
            dtype: of the candidate.
        """
        return f"it is in float32 already, and what reads it in {dtype} is not"


class ModelParts(PartsByName):
    """What is known of the parts of a model that is at hand.

    Args:
        adapter: of the model, or of a copy of it. Of a text tower presets alone can be kept: what a user names are
            modules of the image tower beside it.
    """

    def __init__(self, adapter: EncoderAdapter) -> None:
        self._tower, self._is_text = Tower.of(adapter), isinstance(adapter, TextTower)

    def stage_of(self, module: str) -> str:
        stages = ("embedding", "pooling")
        return next((stage for stage in stages if is_within(module, tuple(self._tower.chosen_by(stage)))), "")

    def keepable(self, module: str) -> str:
        while module:
            try:
                if self._tower.meant_by(module):
                    return module
            except RequestError:
                pass
            module = module.rpartition(".")[0]
        return ""

    def adding(self, names: Names) -> Names:
        meant = {name: self._tower.meant_by(name) for name in names}
        for name in names:
            is_named = name in PRESETS or not self._is_text
            if not is_named or not self._tower.is_there(name, meant[name]) or not self._tower.adds(name, meant):
                del meant[name]
        return tuple(meant)

    def why_no_more(self, dtype: str) -> str:
        if not self._is_text:
            return super().why_no_more(dtype)
        return "of a text tower presets alone can be kept, for names of modules are the image tower's"


def kept_of(adapter: EncoderAdapter, precision: Precision) -> Kept:
    """Return what of a model a precision keeps in float32.

    Args:
        adapter: of the model, or of a copy of it in any dtype.
        precision: whose names are looked up.

    Raises:
        RequestError: a name is neither a preset nor a module, or adds nothing to the others; the message says which.
    """
    if not precision.keep_float32:
        return ALL_LOW
    if precision.is_auto:
        raise RequestError("keep_float32 'auto' stands for what nx.export and naflex-export search for: expected names")
    tower = Tower.of(adapter)
    meant = {name: tower.meant_by(name) for name in precision.keep_float32}
    for name, modules in meant.items():
        if not tower.is_there(name, modules):
            said = PRESETS.get(name) or f"{type(tower.modules[name]).__name__} without weights"
            raise RequestError(f"keep_float32 {name!r} ({said}) changes nothing: this model computes nothing there")
    for name in meant:
        if not tower.adds(name, meant):
            raise RequestError(f"keep_float32 {name!r} changes nothing: the other names keep all of it; leave it out")
    chosen = {module for modules in meant.values() for module in modules}
    outermost = frozenset(name for name in chosen if not with_holders(name) & (chosen - {name}))
    return Kept(outermost, "residual" in meant, "softmax" in meant)


def blocks_of(adapter: EncoderAdapter) -> Names:
    """Return the names of a model's blocks, in order: the numbered modules that hold most of its weights."""
    return Tower.of(adapter).blocks


def close_names(name: str, known: Iterable[str]) -> list[str]:
    """Return up to three of the names that are known which may be meant by one that is not.

    Those that a pattern stands for, or that differ in case or in what stands ahead of them; else those spelt alike.

    Args:
        name: that a user gave.
        known: what there is.
    """
    names, asked = list(dict.fromkeys(known)), name.lower()
    if no_pattern(name):
        found = fnmatch.filter(names, name)
    else:
        found = [one for one in names if one.lower() == asked or asked.endswith(f".{one.lower()}")][-1:]
        found += [one for one in names if one.lower().endswith(f".{asked}")]
    by_case = {one.lower(): one for one in reversed(names)}
    return (found or [by_case[one] for one in difflib.get_close_matches(asked, list(by_case), n=3)])[:3]


def no_pattern(name: str) -> str:
    """Return what to say of a name that is a pattern, which stands for no module; nothing of another."""
    return ", and a pattern stands for none" if any(sign in name for sign in "*?[") else ""


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalization, of any library: it is called so, and is made of nothing else."""
    return "norm" in _kind(module) and not list(module.children())


def with_holders(name: str) -> set[str]:
    """Return a name, and those of all modules that hold it."""
    parts = name.split(".")
    return {".".join(parts[:length]) for length in range(1, len(parts) + 1)}


def is_within(name: str, others: Sequence[str]) -> bool:
    """Whether a module is one of others, or part of one."""
    return any(name == other or name.startswith(f"{other}.") for other in others)


def _kind(module: nn.Module) -> str:
    return type(module).__name__.lower()


def _num_weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
