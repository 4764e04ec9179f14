"""Where a model and its weights come from: timm, transformers or a factory, and the hub, a seed or a local file.

One never stands in for another: what was asked for is loaded, or the request fails.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib
import importlib.util
import math
import pickle
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import NaFlexVit, clean_state_dict
from timm.models.naflexvit import checkpoint_filter_fn
from torch import Tensor, nn

from naflex_export.errors import BackendError, RequestError
from naflex_export.models import DEFAULT_MODEL, TRANSFORMERS_PREFIX, adapter_of
from naflex_export.serving.manifest import MANIFEST, Manifest, sha256_of

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
_TIMM_NAME = re.compile(r"[\w.-]*", re.ASCII)
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class ModelSource:
    """A model as a user names it.

    Attributes:
        model: a timm name, `hf:` and the folder or hub id of a transformers model, or `module:factory` for a callable
            that returns a model.
        weights: "pretrained" (from the hub or the folder, or as the factory returns it), "random", or the path of a
            checkpoint.
        seed: of random weights.
        patch_interpolator: make a timm model that takes other patch sizes than its own. A factory decides by itself.
    """

    model: str = DEFAULT_MODEL
    weights: str = "pretrained"
    seed: int = 0
    patch_interpolator: bool = False

    @classmethod
    def noted(
        cls, manifest: Manifest, model: str | None = None, weights: str | None = None, trusted: bool = False
    ) -> ModelSource:
        """Return where an artifact's model came from, as its manifest has it, but for what the caller says.

        Args:
            manifest: the artifact's.
            model: in place of the one that the manifest names.
            weights: in place of those that the manifest names.
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
        model, weights = model or noted.get("model"), weights or noted.get("weights")
        if model is None or weights is None:
            raise RequestError(
                f"{MANIFEST} does not say where the model came from (it was exported from Python): "
                "give --reference MODEL and --weights WEIGHTS"
            )
        return cls(model, weights, noted.get("seed", 0), noted.get("patch_interpolator", False))

    def load(self) -> nn.Module:
        """Return the model, in float32 and eval mode.

        Raises:
            RequestError: there is no such model or checkpoint, or they do not fit each other.
            BackendError: the model is transformers', which is not installed.
        """
        self.check()
        model = self._create()
        if self.weights == "random":
            randomize(model, self.seed)
        elif self.weights != "pretrained":
            _load_checkpoint(model, Path(self.weights))
        return model.float().eval()

    def check(self) -> None:
        """Check what can be checked before any work: that folders and files are there, and of a kind we read."""
        if self._is_transformers:
            _check_transformers(self.model.removeprefix(TRANSFORMERS_PREFIX))
        if self.weights in ("pretrained", "random"):
            return
        path = Path(self.weights)
        if not path.is_file():
            raise RequestError(f"checkpoint {self.weights!r} does not exist: expected 'pretrained', 'random' or a file")
        suffixes = SUFFIXES[:1] if self._is_transformers else SUFFIXES
        if path.suffix not in suffixes:
            raise RequestError(
                f"checkpoint {self.weights!r} ends in {path.suffix!r}: expected one of {', '.join(suffixes)}"
            )

    def describe(self) -> dict[str, Any]:
        """Return the source as plain JSON values, with the hash of a checkpoint file."""
        model = self.model
        if self._is_transformers and (folder := Path(model.removeprefix(TRANSFORMERS_PREFIX))).is_dir():
            model = f"{TRANSFORMERS_PREFIX}{folder.resolve()}"
        described: dict[str, Any] = {"model": model, "weights": self.weights}
        if self.weights == "random":
            described["seed"] = self.seed
        elif self.weights != "pretrained":
            path = Path(self.weights)
            described |= {"weights": str(path.resolve()), "checkpoint_sha256": sha256_of(path)}
        if self.patch_interpolator:
            described["patch_interpolator"] = True
        return described

    @property
    def _is_transformers(self) -> bool:
        return self.model.startswith(TRANSFORMERS_PREFIX)

    def _create(self) -> nn.Module:
        if self._is_transformers:
            return _create_transformers(self.model.removeprefix(TRANSFORMERS_PREFIX), self.weights)
        if ":" in self.model and not self.model.startswith("hf-hub:"):
            return _call_factory(self.model)
        name = self.model.split(".")[0]
        if not timm.is_model(name):
            raise RequestError(_unknown_model(self.model))
        options: dict[str, Any] = {} if name.startswith("naflexvit") else {"use_naflex": True}
        if self.patch_interpolator:
            options["enable_patch_interpolator"] = True
        try:
            model = timm.create_model(self.model, pretrained=self.weights == "pretrained", **options)
        except TypeError as error:
            raise RequestError(f"timm's {self.model!r} cannot be built as a NaFlexVit: {error}") from error
        except Exception as error:  # the hub's client raises classes of many libraries
            if self.weights != "pretrained":
                raise
            raise RequestError(
                f"pretrained weights of {self.model!r} cannot be had: {_first_line(error)}. "
                "Give --weights FILE for a local checkpoint, or --weights random for a dry run"
            ) from error
        if not isinstance(model, NaFlexVit):
            raise RequestError(f"timm builds {self.model!r} as a {type(model).__name__}: expected a NaFlexVit")
        return model


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


def _load_checkpoint(model: nn.Module, path: Path) -> None:
    state = _read_checkpoint(path)
    if isinstance(model, NaFlexVit) and set(state) != set(model.state_dict()):
        state = checkpoint_filter_fn(state, model)  # timm's own conversion, from a classic ViT's names
    own = model.state_dict()
    missing, unexpected = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    if missing or unexpected:
        raise RequestError(
            f"checkpoint {str(path)!r} does not fit the model: "
            f"{_some('missing', missing)}{_some('unexpected', unexpected)}is it a checkpoint of this architecture?"
        )
    for name, tensor in state.items():
        if tensor.shape != own[name].shape:
            raise RequestError(
                f"checkpoint {str(path)!r} does not fit the model: {name} is {list(tensor.shape)}, "
                f"expected {list(own[name].shape)}"
            )
    model.load_state_dict(state)


def _read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint; nothing in it is run."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise RequestError(
            f"checkpoint {str(path)!r} ({path.stat().st_size} bytes) cannot be read: {_first_line(error)}. "
            "Is it whole, and tensors only?"
        ) from error
    for key in ("state_dict_ema", "model_ema", "state_dict", "model"):  # what training scripts wrap a state in
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
            break
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise RequestError(f"checkpoint {str(path)!r} holds no state dict: expected tensors by parameter name")
    return clean_state_dict(loaded)


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
            with torch.device("meta"):
                outline = AutoModel.from_config(config, trust_remote_code=False)
        except Exception as error:  # transformers and the hub's client raise classes of many libraries
            raise RequestError(f"model 'hf:{name}' cannot be built: {_first_line(error)}") from error
        adapter_of(outline)  # before any weights are fetched
        if weights != "pretrained":
            return AutoModel.from_config(config, trust_remote_code=False, dtype=torch.float32)
        try:
            model, loading = AutoModel.from_pretrained(
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
            f"weights of 'hf:{name}' do not fit its config.json: {_some('missing', missing)}is it whole?"
        )
    return model


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
    return "" if _TIMM_NAME.fullmatch(model) else "a python factory, which would run"


def _call_factory(text: str) -> nn.Module:
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
        model = factory()
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
    return f"model {name!r} does not exist; the closest are {', '.join(close)}"


def _some(kind: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{len(names)} keys {kind} ({', '.join(names[:3])}{more}); "


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300].rstrip(".")
