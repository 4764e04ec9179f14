"""Where a model and its weights come from: timm, transformers or a factory, and the hub, a seed or a local file.

One never stands in for another: what was asked for is loaded, or the request fails.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import json
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import NaFlexVit, load_model_config_from_hf
from torch import nn

from naflex_export.errors import BackendError, RequestError
from naflex_export.models import DEFAULT_MODEL, TRANSFORMERS_PREFIX, adapter_of, towers_in
from naflex_export.models.checkpoint_files import check_checkpoint, checkpoint_sha256
from naflex_export.models.checkpoints import load_checkpoint, some_keys
from naflex_export.serving.manifest import MANIFEST, Manifest

_TIMM_NAME = re.compile(r"[\w.-]*", re.ASCII)
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_TIMM_SOURCES = {"hf-hub": "hf-hub", "hf_hub": "hf-hub", "local-dir": "local-dir"}
_SAID_BY_WEIGHTS = ("pretrained", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict")


@dataclass(frozen=True)
class ModelSource:
    """A model as a user names it.

    Attributes:
        model: a timm name, such as timm itself takes it (`hf-hub:` and a hub id, `local-dir:` and a folder too), `hf:`
            and the folder or hub id of a transformers model, or `module:factory` for a callable that returns a model.
        weights: "pretrained" (from the hub or the folder, or as the factory returns it), "random", or the path of a
            checkpoint, a file or a folder of shards.
        seed: of random weights.
        patch_interpolator: make a timm model that takes other patch sizes than its own. A factory decides by itself.
        model_args: what timm's constructor or the factory is given besides, by name.
        state: which state of a checkpoint to take, where it holds several, such as `state_dict_ema`.
    """

    model: str = DEFAULT_MODEL
    weights: str = "pretrained"
    seed: int = 0
    patch_interpolator: bool = False
    model_args: Mapping[str, Any] = field(default_factory=dict)
    state: str = ""

    @classmethod
    def noted(
        cls,
        manifest: Manifest,
        model: str | None = None,
        weights: str | None = None,
        model_args: Mapping[str, Any] | None = None,
        trusted: bool = False,
    ) -> ModelSource:
        """Return where an artifact's model came from, as its manifest has it, but for what the caller says.

        Args:
            manifest: the artifact's.
            model: in place of the one that the manifest names.
            weights: in place of those that the manifest names.
            model_args: in place of those that the manifest names; those go with its model.
            trusted: run a factory, or fetch from a hub, that the manifest alone names.

        Raises:
            RequestError: neither says it, or only the manifest does, and is not trusted to.
        """
        noted = manifest.model["source"]
        if model is None and not trusted and (reason := _why_untrusted(noted.get("model", ""))):
            raise RequestError(
                f"{MANIFEST} names {noted['model'][:200]!r} as the model, {reason}; whoever made the artifact chose "
                "it: say the model yourself with --reference MODEL, or give --trust-source if you know who made it"
            )
        kept = noted.get("model_args", {}) if model in (None, noted.get("model")) else {}
        same_weights = weights in (None, noted.get("weights"))
        model, weights = model or noted.get("model"), weights or noted.get("weights")
        if model is None or weights is None:
            raise RequestError(
                f"{MANIFEST} does not say where the model came from (it was exported from Python): "
                "give --reference MODEL and --weights WEIGHTS"
            )
        return cls(
            model,
            weights,
            noted.get("seed", 0),
            noted.get("patch_interpolator", False),
            model_args or {name: _hashable(value) for name, value in kept.items()},
            noted.get("checkpoint_state", "") if same_weights else "",
        )

    def load(self) -> nn.Module:
        """Return the model, in float32 and eval mode.

        Raises:
            RequestError: there is no such model or checkpoint, or they do not fit each other.
            BackendError: the model is transformers', which is not installed.
        """
        return self.open().model

    def open(self) -> Opened:
        """Return the model, in float32 and eval mode, with what there is to say of where it came from.

        Raises:
            RequestError: there is no such model or checkpoint, or they do not fit each other.
            BackendError: the model is transformers', which is not installed.
        """
        self.check()
        model, source, notes = self._create(), self, []
        path = Path(self._timm_source[1] if self._is_local_dir and self.weights == "pretrained" else self.weights)
        if self.weights == "random":
            randomize(model, self.seed)
        elif self.weights != "pretrained" or self._is_local_dir:
            taken = load_checkpoint(model, path, self.state)
            source, notes = dataclasses.replace(self, state=taken.label), [taken.note] if taken.note else []
        return Opened(model.float().eval(), source, tuple(notes))

    def check(self) -> None:
        """Check what can be checked before any work: that folders and files are there, and of a kind we read."""
        if self._is_transformers:
            _check_transformers(self.model.removeprefix(TRANSFORMERS_PREFIX))
            if self.model_args:
                raise RequestError(
                    f"--model-args {next(iter(self.model_args))}=... cannot be given for {self.model!r}: what a model "
                    "of transformers is made of stands in its config.json"
                )
        for name in _SAID_BY_WEIGHTS:
            if name in self.model_args:
                raise RequestError(f"--model-args {name}=... cannot be given: --weights says which weights to load")
        if self._is_local_dir and not (Path(self._timm_source[1]) / "config.json").is_file():
            raise RequestError(
                f"model {self.model!r} is no folder of timm's: expected one with a config.json, as timm.models."
                "save_for_hf writes it"
            )
        if self.weights not in ("pretrained", "random"):
            check_checkpoint(Path(self.weights), safe_only=self._is_transformers)
        elif self.state and not (self._is_local_dir and self.weights == "pretrained"):
            raise RequestError(
                f"state {self.state!r} cannot be taken of {self.weights} weights: expected the --weights of a file"
            )

    def describe(self) -> dict[str, Any]:
        """Return the source as plain JSON values, with the hash of a checkpoint file."""
        model = self.model
        if self._is_transformers and (folder := Path(model.removeprefix(TRANSFORMERS_PREFIX))).is_dir():
            model = f"{TRANSFORMERS_PREFIX}{folder.resolve()}"
        elif self._is_local_dir:
            model = f"local-dir:{Path(self._timm_source[1]).resolve()}"
        described: dict[str, Any] = {"model": model, "weights": self.weights}
        if self.weights == "random":
            described["seed"] = self.seed
        elif self.weights != "pretrained":
            path = Path(self.weights)
            described |= {"weights": str(path.resolve()), "checkpoint_sha256": checkpoint_sha256(path)}
        if self.state:
            described["checkpoint_state"] = self.state
        if self.patch_interpolator:
            described["patch_interpolator"] = True
        if self.model_args:
            described["model_args"] = dict(self.model_args)
        return described

    @property
    def _is_transformers(self) -> bool:
        return self.model.startswith(TRANSFORMERS_PREFIX)

    @property
    def _timm_source(self) -> tuple[str, str]:
        """Return timm's word for where a model comes from, empty for its own registry, and what follows it."""
        source, colon, rest = self.model.partition(":")
        known = _TIMM_SOURCES.get(source.lower(), "") if colon else ""
        return (known, rest) if known else ("", self.model)

    @property
    def _is_local_dir(self) -> bool:
        return self._timm_source[0] == "local-dir"

    def _create(self) -> nn.Module:
        if self._is_transformers:
            return _create_transformers(self.model.removeprefix(TRANSFORMERS_PREFIX), self.weights)
        source, rest = self._timm_source
        if not source and ":" in self.model:
            return _call_factory(self.model, self.model_args)
        return self._create_timm(source, rest)

    def _create_timm(self, source: str, name: str) -> nn.Module:
        """Return a NaFlexVit of timm, with its pretrained weights where they come from the hub."""
        architecture = _architecture_of(source, name) if source else name.partition(".")[0]
        if not timm.is_model(architecture):
            raise RequestError(_unknown_model(self.model if not source else architecture))
        options: dict[str, Any] = {} if architecture.startswith("naflexvit") else {"use_naflex": True}
        if self.patch_interpolator:
            options["enable_patch_interpolator"] = True
        options |= self.model_args
        from_hub = self.weights == "pretrained" and source != "local-dir"
        given = " ".join(f"{key}={value}" for key, value in self.model_args.items())
        try:
            with _heard_loads() as left_random:
                model = timm.create_model(f"{source}:{name}" if source else name, pretrained=from_hub, **options)
        except TypeError as error:
            raise RequestError(f"timm's {self.model!r} cannot be built as a NaFlexVit: {error}") from error
        except Exception as error:  # the hub's client raises classes of many libraries
            if from_hub:
                raise RequestError(
                    f"pretrained weights of {self.model!r} cannot be had: {_first_line(error)}. "
                    "Give --weights FILE for a local checkpoint, or --weights random for a dry run"
                ) from error
            if not given:
                raise
            raise RequestError(
                f"timm's {self.model!r} cannot be built with --model-args {given}: {_first_line(error)}"
            ) from error
        if not towers_in(model):
            raise RequestError(f"timm builds {self.model!r} as a {type(model).__name__}: expected a NaFlexVit")
        if from_hub and left_random:
            raise RequestError(
                f"pretrained weights of {self.model!r} do not fill a model of --model-args {given}: "
                f"{some_keys('missing', left_random)}which would be left random; give --weights FILE for a checkpoint "
                "of just this model"
            )
        return model


@dataclass(frozen=True)
class Opened:
    """A model that was loaded.

    Attributes:
        model: in float32 and eval mode.
        source: where it came from, with the state that was taken of its checkpoint.
        notes: what was chosen on the way, a sentence each, for the user to read.
    """

    model: nn.Module
    source: ModelSource
    notes: tuple[str, ...] = ()


def parse_model_args(texts: Sequence[str]) -> dict[str, Any]:
    """Return arguments written as timm's command lines have them, `num_classes=30 global_pool=avg`, by name.

    A value is a Python literal where it reads as one, else the text itself.

    Raises:
        RequestError: one is no `name=value`, or given twice.
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise RequestError(f"--model-args {text!r} is malformed: expected name=value, such as num_classes=30")
        if name in found:
            raise RequestError(f"--model-args {name} is given twice ({found[name]!r} and {value!r}): expected it once")
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            found[name] = value
    try:
        json.dumps(found)  # the manifest notes them
    except (TypeError, ValueError) as error:
        raise RequestError(f"--model-args cannot be noted in a manifest ({error}): expected plain values") from error
    return found


def _hashable(value: Any) -> Any:
    """Return a value as it was before JSON made lists of its tuples."""
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def _architecture_of(source: str, name: str) -> str:
    """Return which of timm's architectures a folder, or a repository of the hub, holds."""
    try:
        if source == "local-dir":
            config = json.loads((Path(name) / "config.json").read_text(encoding="utf-8"))
            found = config.get("architecture") or config.get("pretrained_cfg", {}).get("architecture")
        else:
            found = load_model_config_from_hf(name)[1]
    except Exception as error:  # the hub's client raises classes of many libraries
        raise RequestError(f"model '{source}:{name}' cannot be had: {_first_line(error)}") from error
    if not isinstance(found, str):
        raise RequestError(f"config.json of '{source}:{name}' names no architecture: is it a model of timm's?")
    return found


@contextlib.contextmanager
def _heard_loads() -> Iterator[list[str]]:
    """Yield a list that takes the parameters which a load of pretrained weights left as they were.

    timm loads them without `strict` where the classes differ, and says nothing of what stays random.
    """
    missing: list[str] = []

    def heard(self: NaFlexVit, *args: Any, **kwargs: Any) -> Any:
        result = nn.Module.load_state_dict(self, *args, **kwargs)
        missing.extend(sorted(result.missing_keys))
        return result

    NaFlexVit.load_state_dict = heard
    try:
        yield missing
    finally:
        del NaFlexVit.load_state_dict


def randomize(model: nn.Module, seed: int) -> None:
    """Draw every parameter anew, so that each one shows in the outputs.

    A model as timm initializes it would hide faults: layer scales of 1e-5 silence its blocks, an untrained head is
    zero, and a position embedding of 0.02 is lost beside its patches.
    """
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=draw)
            leaf = name.rsplit(".", 1)[-1]
            if parameter.ndim < 2:
                value = 0.02 * noise if leaf == "bias" else 1 + 0.1 * noise
            elif "pos_embed" in leaf or "token" in leaf or leaf in ("latent", "probe") or "position_embedding" in name:
                value = 0.5 * noise
            else:
                value = noise / math.sqrt(parameter[0].numel())
            parameter.copy_(value)


def weights_sha256(model: nn.Module) -> str:
    """Return a hash of a model's state as the reference sees it: names, shapes, and values in float32."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        values = tensor.detach().cpu()
        values = (values.float() if values.is_floating_point() else values).contiguous()
        digest.update(f"{name} {values.dtype} {list(values.shape)}".encode())
        digest.update(values.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _check_transformers(name: str) -> None:
    """Check that transformers is there, and a folder or hub id by its form."""
    if importlib.util.find_spec("transformers") is None:
        raise BackendError(
            f"model 'hf:{name}' needs transformers, which is not installed: pip install naflex_export[hf]"
        )
    path = Path(name)
    if path.exists():
        if not (path / "config.json").is_file():
            raise RequestError(f"model 'hf:{name}' is no transformers model: expected a folder with a config.json")
    elif not _HUB_ID.fullmatch(name):
        raise RequestError(f"model 'hf:{name}' does not exist: expected a folder, or a hub id such as owner/name")


def _create_transformers(name: str, weights: str) -> nn.Module:
    """Return a transformers model with the weights of its folder or hub id, or uninitialized for weights to come.

    Weights are read from safetensors only, and nothing that a repository holds is run.
    """
    try:
        from transformers import AutoConfig, AutoModel
    except ImportError as error:  # its own dependencies have bounds that pip may not have kept
        raise BackendError(
            f"transformers does not import ({_first_line(error)}): pip install --upgrade naflex_export[hf]"
        ) from error

    with _quiet_transformers(local=Path(name).is_dir()):
        try:
            config = AutoConfig.from_pretrained(name, trust_remote_code=False)
            saved = _saved_class(config)
            with torch.device("meta"):
                outline = _uninitialized(saved, config)
        except Exception as error:  # transformers and the hub's client raise classes of many libraries
            raise RequestError(f"model 'hf:{name}' cannot be built: {_first_line(error)}") from error
        adapter_of(outline)  # before any weights are fetched
        if weights != "pretrained":
            return _uninitialized(saved, config, dtype=torch.float32)
        try:
            model, loading = (saved or AutoModel).from_pretrained(
                name, config=config, use_safetensors=True, trust_remote_code=False, output_loading_info=True
            )
        except Exception as error:
            raise RequestError(
                f"weights of 'hf:{name}' cannot be had as safetensors: {_first_line(error)}. "
                "Give --weights FILE for a local checkpoint, or --weights random for a dry run"
            ) from error
    missing = sorted(loading["missing_keys"])
    if missing:  # transformers would leave them random, and say so in a warning
        raise RequestError(
            f"weights of 'hf:{name}' do not fit its config.json: {some_keys('missing', missing)}is it whole?"
        )
    return model


def _saved_class(config: Any) -> Any:
    """Return the class that a config says its weights were saved by, such as an image classifier; None if unknown.

    `AutoModel` would make the model without what the class has on top of it.
    """
    import transformers

    for name in config.architectures or ():
        found = getattr(transformers, name, None) if name.isidentifier() else None
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return found
    return None


def _uninitialized(saved: Any, config: Any, **options: Any) -> Any:
    """Return a model of a config, of the class that it was saved by, its weights yet to come."""
    from transformers import AutoModel

    if saved is None:
        return AutoModel.from_config(config, trust_remote_code=False, **options)
    return saved._from_config(config, **options)


@contextlib.contextmanager
def _quiet_transformers(local: bool) -> Iterator[None]:
    """Hold back transformers' warnings, and its progress bars where nothing is downloaded."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if local:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _why_untrusted(model: str) -> str:
    """Return what loading a model by this name would do that a stranger must not choose; empty where nothing."""
    if model.startswith(TRANSFORMERS_PREFIX):
        is_local = Path(model.removeprefix(TRANSFORMERS_PREFIX)).is_absolute()
        return "" if is_local else "a repository on a hub, which would be fetched"
    if model.startswith(("hf-hub:", "hf_hub:")):
        return "a repository on a hub, which would be fetched"
    if model.startswith("local-dir:"):
        return ""
    return "" if _TIMM_NAME.fullmatch(model) else "a python factory, which would run"


def _call_factory(text: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Return what `module:factory` names: a model, or what a callable returns. Modules of the current folder count.

    Raises:
        RequestError: there is no such thing, it returns none, or it raises; it cannot end the process.
    """
    module_name, _, factory_name = text.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)  # as `python -m` has it; a console script does not
    try:
        factory = getattr(importlib.import_module(module_name), factory_name)
    except (Exception, SystemExit) as error:  # a module may raise anything while it is imported
        said = str(error) if isinstance(error, ImportError | AttributeError | ValueError) else _named(error)
        raise RequestError(f"factory {text!r} cannot be imported ({said}): expected module:callable") from error
    if isinstance(factory, nn.Module):
        return factory
    if not callable(factory):
        raise RequestError(f"factory {text!r} is a {type(factory).__name__}: expected a callable, or a torch module")
    try:
        inspect.signature(factory).bind(**arguments)
    except (TypeError, ValueError) as error:
        given = " ".join(f"{name}={value}" for name, value in arguments.items())
        raise RequestError(
            f"factory {text!r} cannot be called with {f'--model-args {given}' if given else 'no arguments'}: {error}"
        ) from error
    try:
        model = factory(**arguments)
    except (Exception, SystemExit) as error:
        raise RequestError(f"factory {text!r} raised {_named(error)}: expected a torch module") from error
    if not isinstance(model, nn.Module):
        raise RequestError(f"factory {text!r} returned a {type(model).__name__}: expected a torch module")
    return model


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {_first_line(error)}"


def _unknown_model(name: str) -> str:
    naflex = timm.list_models("naflexvit*")
    close = difflib.get_close_matches(name, [*naflex, *timm.list_models()], n=3, cutoff=0.5) or naflex[:3]
    hint = f". A hub id is hf-hub:{name} for timm, hf:{name} for transformers" if "/" in name else ""
    return f"model {name!r} does not exist; the closest are {', '.join(close)}{hint}"


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300].rstrip(".")
