"""The names of timm's models, read from its files: importing timm takes seconds, and a misspelt name takes none.

A model is one that timm builds as a NaFlexVit if its file gives it `use_naflex`, as those of `vit` and `eva` do, or
names itself so.
"""

from __future__ import annotations

import functools
import importlib.util
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

_FILES = ("naflexvit", "vision_transformer", "eva")
_REGISTERED = re.compile(r"@register_model\s+def (\w+)\(")
_RENAMED = re.compile(r"register_model_deprecations\(__name__, \{(.*?)\}\)", re.DOTALL)
_CONFIGURED = re.compile(r"""^ +['"](\w+)\.(\w+)['"]: \w+\(""", re.MULTILINE)


@dataclass(frozen=True)
class TimmNames:
    """What timm knows by name.

    Attributes:
        naflex: models that it builds as a NaFlexVit, those first that always are; each with the tags of its weights.
        text: of all its files of models, where a name stands that it knows in whatever way.
    """

    naflex: dict[str, tuple[str, ...]]
    text: str

    def knows(self, name: str) -> bool:
        """Whether timm may know a name of weights: it stands somewhere in those files."""
        literal = re.escape(name)  # it comes first: text that begins otherwise is skipped quickly
        return re.search(rf"{literal}(?<![\w.]{literal})(?![\w.])", self.text) is not None

    def has_model(self, name: str) -> bool:
        """Whether timm has a model of that name, which may be one that it has renamed since."""
        renamed = "\n".join(_RENAMED.findall(self.text))
        return self._registers(name) or re.search(rf"""['"]{re.escape(name)}['"]\s*:""", renamed) is not None

    def builds_otherwise(self, name: str) -> bool:
        """Whether timm has a model of that name that cannot be a NaFlexVit."""
        return name not in self.naflex and self._registers(name)

    def _registers(self, name: str) -> bool:
        return re.search(rf"@register_model\s+def {re.escape(name)}\(", self.text) is not None

    def matching(self, pattern: str) -> dict[str, tuple[str, ...]]:
        """Return the models whose names match a pattern such as `naflexvit*`, or hold a word such as `siglip`."""
        wanted = pattern.lower() if set(pattern) & set("*?[") else f"*{pattern.lower()}*"
        return {name: tags for name, tags in self.naflex.items() if fnmatchcase(name, wanted)}


@functools.cache
def timm_names() -> TimmNames | None:
    """Return what timm knows by name; None where timm, or the text of its files, is not there."""
    found = importlib.util.find_spec("timm")
    if found is None or not found.submodule_search_locations:
        return None
    folder = Path(next(iter(found.submodule_search_locations))) / "models"
    try:
        texts = {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.py"))}
    except (OSError, UnicodeDecodeError):
        return None
    naflex: dict[str, list[str]] = {}
    for file in _FILES:
        text = texts.get(file, "")
        if file == "naflexvit" or "use_naflex" in text:
            naflex |= {name: [] for name in _REGISTERED.findall(text)}
            for name, tag in _CONFIGURED.findall(text):
                naflex.setdefault(name, []).append(tag)
    return (
        TimmNames({name: tuple(tags) for name, tags in naflex.items()}, "\n".join(texts.values())) if naflex else None
    )
