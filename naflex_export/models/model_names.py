"""What a user means by a model's name: one resolver, which says what it understood. It imports no library."""

from __future__ import annotations

import difflib
import importlib.util
import json
import re
from dataclasses import dataclass
from pathlib import Path

from naflex_export.errors import BackendError, RequestError
from naflex_export.models import TRANSFORMERS_PREFIX
from naflex_export.models.timm_names import timm_names

_HUB = re.compile(r"(https?://)?(www\.)?huggingface\.co/", re.IGNORECASE)
_PART = r"\w(?:[\w.-]*\w)?"
_HUB_ID = re.compile(rf"(?=.{{3,96}}$)(?!.*(?:--|\.\.)){_PART}/{_PART}", re.ASCII)
"""What the hub takes for an owner and a name; `./folder` and `~/folder` are paths."""
_PREFIXES = {"hf": "hf", "hf-hub": "hf-hub", "hf_hub": "hf-hub", "local-dir": "local-dir", "local_dir": "local-dir"}
_BARE_ID = re.compile(rf"(?=.{{1,96}}$)(?!.*(?:--|\.\.)){_PART}", re.ASCII)

NOT_HAD = "docs/errors.md#pretrained-weights-cannot-be-had"
"""Where it says what to do where the hub is not reached, or does not give what was asked for."""

LOCAL_DIR = "local-dir"
"""Timm's word for a folder that holds a model of its own."""

_OF_TIMM = {"hf-hub": "hf-hub", "hf_hub": "hf-hub", LOCAL_DIR: LOCAL_DIR}
_CHECKPOINTS = (".safetensors", ".pth", ".tar", ".pt", ".ckpt", ".bin")


@dataclass(frozen=True)
class Understood:
    """A model's name as it was understood.

    Attributes:
        name: as `ModelSource` takes it.
        note: what was made of what the user wrote, in a sentence; empty where it was taken as it is.
    """

    name: str
    note: str = ""


def understood(text: str) -> Understood:
    """Return which model is meant: by a name of timm's, a hub id, a folder, or what `ModelSource` takes anyway.

    Raises:
        RequestError: it is a checkpoint or another file, a folder without a model, or a name that timm does not know.
    """
    name = _without_address(text.strip())
    if not name:
        raise RequestError(f"model {text!r} names nothing: expected a model's name; naflex-export --list shows timm's")
    prefix, colon, rest = name.partition(":")
    if colon:
        known, rest = _PREFIXES.get(prefix.lower()), _without_address(rest)
        if known is None:
            _check_factory(name)
            return Understood(name)
        if not rest:
            raise RequestError(f"model {text!r} names nothing behind {known}: expected a folder, or a hub id there")
        return Understood(f"{known}:{Path(rest).expanduser() if rest.startswith('~') else rest}")
    if not Path(name).is_dir():
        name = name.rstrip("/")
    architecture = name.partition(".")[0]
    names = timm_names()
    if names is not None and architecture.lower() in names.naflex:
        check_timm_name(name.lower())
        return Understood(name.lower(), "" if name == text == name.lower() else _said(text, name.lower(), "timm's"))
    path = Path(name)
    if path.is_dir():
        return _folder(text, path)
    if path.is_file() or name.endswith(_CHECKPOINTS):
        raise RequestError(
            f"model {text!r} is a file, or named as one: expected a model's name, and --weights {text} for its weights"
        )
    if _HUB_ID.fullmatch(name):
        return _hub_id(text, name)
    if "/" in name:
        raise RequestError(
            f"model {text!r} does not exist: expected a folder with a config.json, a hub id such as owner/name, or a "
            "name of timm's; naflex-export --list shows those"
        )
    check_timm_name(name)
    return Understood(name)


def _without_address(name: str) -> str:
    """Return what an address on the hub names, without the branch or file that it shows; another name as it is."""
    rest = _HUB.sub("", name, count=1)
    return name if rest == name else re.sub(r"(/(tree|blob|resolve)/.*|/*[?#].*|/+)$", "", rest)


def _check_factory(name: str) -> None:
    """Check that `module:factory` has both, and that there is such a module; none is imported."""
    module, _, factory = name.partition(":")
    if not all(part.isidentifier() for part in [*module.split("."), factory]):
        raise RequestError(
            f"model {name!r} is no module:factory: expected the names of both, or hf:, hf-hub: or local-dir: and where "
            "the model is"
        )
    top = module.partition(".")[0]
    here = Path.cwd() / top
    if not (here.is_dir() or here.with_suffix(".py").is_file() or importlib.util.find_spec(top)):
        raise RequestError(
            f"factory {name!r} cannot be imported (No module named {top!r}): expected module:callable, of a module in "
            "this folder or one that is installed"
        )


def source_and_name(model: str) -> tuple[str, str]:
    """Return timm's word for where a model comes from, empty for its own registry, and what follows it."""
    source, colon, rest = model.partition(":")
    known = _OF_TIMM.get(source.lower(), "") if colon else ""
    return (known, rest) if known else ("", model)


def check_transformers(name: str) -> None:
    """Check that transformers is there, and a folder or hub id by its form.

    Raises:
        BackendError: transformers is not installed.
        RequestError: the name is no hub id, and no folder with a config.json.
    """
    if importlib.util.find_spec("transformers") is None:
        raise BackendError(
            f"model 'hf:{name}' needs transformers, which is not installed: pip install naflex_export[hf]"
        )
    path = Path(name)
    if path.exists():
        if not (path / "config.json").is_file():
            raise RequestError(f"model 'hf:{name}' is no transformers model: expected a folder with a config.json")
    elif not (_HUB_ID.fullmatch(name) or _BARE_ID.fullmatch(name)):
        raise RequestError(f"model 'hf:{name}' does not exist: expected a folder, or a hub id such as owner/name")


def check_timm_name(name: str) -> None:
    """Check a name of timm's, with the tag of its weights or without, where timm's files can be read.

    Raises:
        RequestError: timm has no such model, builds no NaFlexVit of it, or has no weights of that tag.
    """
    names = timm_names()
    if names is None:
        return
    architecture, dot, tag = name.partition(".")
    if architecture in names.naflex:
        there = [f"{architecture}.{one}" for one in names.naflex[architecture]]
        if dot and there and not names.knows(name):  # of a model without, timm makes them as it is imported
            raise RequestError(
                f"model {name!r} does not exist: timm has no weights {tag!r} of {architecture}; {_closest(name, there)}"
            )
    elif names.builds_otherwise(architecture):
        raise RequestError(
            f"model {name!r} cannot be built as a NaFlexVit: it is another kind of model of timm's; "
            f"{_closest(architecture, list(names.naflex))}; naflex-export --list shows all "
            "(docs/errors.md#not-a-naflexvit)"
        )
    elif not names.has_model(architecture):
        raise RequestError(unknown_model(name))


def unknown_model(name: str) -> str:
    """Return what to say of a name that timm does not know, with the closest that it does, once each."""
    names = timm_names()
    close = f"; {_closest(name, list(names.naflex))}; naflex-export --list shows all" if names is not None else ""
    hint = f". A hub id is hf-hub:{name} for timm, hf:{name} for transformers" if "/" in name else ""
    return f"model {name!r} does not exist{close}{hint} (docs/errors.md#a-model-does-not-exist)"


def _closest(name: str, there: list[str]) -> str:
    there = list(dict.fromkeys(there))
    close = difflib.get_close_matches(name.lower(), there, n=3, cutoff=0.5)
    held = [one for one in there if name.lower() in one]
    if held and not close:
        return f"{', '.join(held[:3])}{' and others' if len(held) > 3 else ''} hold that word"
    if not close:
        return "no name of a NaFlexVit is close to it"
    return f"the closest {'is' if len(close) == 1 else 'are'} {', '.join(close)}"


def _hub_id(text: str, name: str) -> Understood:
    owner, _, rest = name.partition("/")
    names = timm_names()
    if owner.lower() == "timm":
        rest = rest.lower() if names is not None and rest.lower().partition(".")[0] in names.naflex else rest
        if names is not None and rest.partition(".")[0] in names.naflex:
            check_timm_name(rest)
            return Understood(rest, _said(text, rest, "timm's"))
        name = f"timm/{rest}"
        return Understood(f"hf-hub:{name}", _said(text, f"hf-hub:{name}", "a repository of timm's on the hub"))
    taken = f"{TRANSFORMERS_PREFIX}{name}"
    said = _said(text, taken, "a model of transformers on the hub")
    return Understood(taken, f"{said}; one of timm's there is hf-hub:{name}")


def _folder(text: str, path: Path) -> Understood:
    """Return whose model a folder holds, by its config.json."""
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(
            f"model {text!r} is a folder without a config.json that can be read: expected one that transformers or "
            "timm saved; for weights alone give the model's name, and --weights FOLDER"
        ) from error
    if isinstance(config, dict) and "model_type" in config:
        return Understood(f"{TRANSFORMERS_PREFIX}{path}", _said(text, f"hf:{path}", "a folder of transformers"))
    return Understood(f"local-dir:{path}", _said(text, f"local-dir:{path}", "a folder of timm's"))


def _said(text: str, taken: str, kind: str) -> str:
    return f"{text} is taken as {taken}, {kind}"
