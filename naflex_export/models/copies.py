"""Copies of a model: one that shares its tensors, and one of its own. Functions hung on a model follow into the copy.

`copy.deepcopy` alone fails on tensors that are no leaves, such as a pruned weight or what a hook has stored, and leaves
functions as they are: a `forward` replaced on the instance would go on to call the original, and the copy would do
nothing of its own.
"""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import TorchFunctionMode

from naflex_export.errors import UnsupportedModelError

Model = TypeVar("Model", bound=nn.Module)


WEIGHT_HOOKS = (prune.BasePruningMethod, WeightNorm, SpectralNorm)
"""Kinds of hooks that make a module's weight ahead of its forward."""


DEEPEST = 8
"""Most functions inside of each other that are looked into."""


class _Tensors(TorchFunctionMode):
    """While it is on, a deep copy of a tensor, wherever it is found, is what `copied` makes of it."""

    def __init__(self, copied: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.copied = copied

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__:
            with torch._C.DisableTorchFunction():
                return self.copied(args[0])
        return func(*args, **(kwargs or {}))


def shared_copy(model: Model, replaced: Mapping[int, nn.Module] | None = None) -> Model:
    """Return a copy of a model that shares every tensor with it, and its hooks.

    A method of the model that was put on an instance is the copy's, and so is a function that holds the model in its
    closure. What a hook keeps elsewhere, such as activations in a list, is kept there for both.

    Args:
        model: to be copied.
        replaced: modules that stand in the copy for others, by `id` of those.

    Raises:
        UnsupportedModelError: it cannot be copied, or a function on it reaches the model in a way that no copy follows.
    """
    shared = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    return _copied(model, {**shared, **(replaced or {})}, lambda tensor: tensor)


def whole_copy(model: Model) -> Model:
    """Return a copy of a model with tensors of its own, and its hooks.

    Raises:
        UnsupportedModelError: as `shared_copy`.
    """
    return _copied(model, {}, lambda tensor: tensor.detach().clone())


def replaced_methods(module: nn.Module) -> dict[str, Any]:
    """Return what hides a method of a module's class, by name: attributes of the instance."""
    found = {name: value for name, value in vars(module).items() if not name.startswith("__") and callable(value)}
    return {name: value for name, value in found.items() if callable(getattr(type(module), name, None))}


def made_plain(model: nn.Module) -> None:
    """Make plain parameters, in place, of weights that are computed ahead of each forward.

    These are pruned ones, and those of `torch.nn.utils.weight_norm` and `spectral_norm`, which are hooks. Parametrized
    ones are traced as they are.

    Args:
        model: to be changed.
    """
    for module in model.modules():
        for key, hook in list(module._forward_pre_hooks.items()):
            if isinstance(hook, WEIGHT_HOOKS):
                with torch.no_grad():
                    hook.remove(module)
                del module._forward_pre_hooks[key]


def _copied(model: Model, memo: dict[int, Any], of_tensor: Callable[[Tensor], Tensor]) -> Model:
    memo = dict(memo)
    modules = dict(model.named_modules())
    own = {id(module) for module in modules.values()}
    for module in modules.values():
        for hook in _hooks(module):
            if not (isinstance(hook, types.MethodType) and id(hook.__self__) in own):
                memo[id(hook)] = hook  # as it is: what it keeps is its owner's
    try:
        with _Tensors(of_tensor):
            twin = copy.deepcopy(model, memo)
    except Exception as error:  # of whatever the model holds: a lock, a file, a generator
        raise UnsupportedModelError(
            f"the model cannot be copied ({type(error).__name__}: {error}): take what cannot off it, and hang it on "
            "again afterwards"
        ) from error
    follow = _Following({id(module): memo[id(module)] for module in modules.values()})
    for name, module in modules.items():
        follow.within(memo[id(module)], name)
    return twin


def _hooks(module: nn.Module) -> Iterator[Any]:
    for registered in _hook_tables(module):
        yield from registered.values()


def _hook_tables(module: nn.Module) -> list[dict[int, Any]]:
    return [value for name, value in vars(module).items() if name.endswith("_hooks") and isinstance(value, dict)]


class _Following:
    """Makes functions that reach a model reach its copy.

    Attributes:
        twins: the copy of each module, by the original's id.
    """

    def __init__(self, twins: dict[int, nn.Module]) -> None:
        self.twins = twins

    def within(self, twin: nn.Module, name: str) -> None:
        """Let the methods that were replaced on a copied module, and its hooks, reach the copy.

        Args:
            twin: the copied module.
            name: of the module in the model.
        """
        for attribute, value in replaced_methods(twin).items():
            original = compiled_from(value)
            if _is_method_of_class(original, attribute, self.twins, twin):
                del vars(twin)[attribute]  # torch.compile of the class's own: the copy has that by itself
                continue
            vars(twin)[attribute] = self.rebound(original, f"{name}.{attribute}".removeprefix("."))
        for registered in _hook_tables(twin):
            for key, hook in registered.items():
                registered[key] = self.rebound(hook, f"a hook of {name or 'the model'}")

    def rebound(self, value: Any, name: str, depth: int = 0) -> Any:
        """Return a value with the copy's modules in place of the original's: in methods, closures and partials.

        Args:
            value: anything; what is no function and no module is returned as it is.
            name: of what is looked into, for messages.
            depth: how many functions it lies in.

        Raises:
            UnsupportedModelError: a function reaches the model by a global name.
        """
        if isinstance(value, nn.Module) or depth > DEEPEST:
            return self.twins.get(id(value), value)
        if isinstance(value, types.MethodType):
            function, owner = self.rebound(value.__func__, name, depth + 1), value.__self__
            twin = self.twins.get(id(owner), owner) if isinstance(owner, nn.Module) else owner
            unchanged = function is value.__func__ and twin is owner
            return value if unchanged else types.MethodType(function, twin)
        if isinstance(value, functools.partial):
            parts = [value.func, *value.args, *value.keywords.values()]
            found = [self.rebound(part, name, depth + 1) for part in parts]
            if all(one is other for one, other in zip(parts, found, strict=True)):
                return value
            count = len(value.args) + 1
            named = dict(zip(value.keywords, found[count:], strict=True))
            return functools.partial(found[0], *found[1:count], **named)
        if isinstance(value, types.FunctionType):
            return self._function(compiled_from(value), name, depth)
        return value

    def _function(self, function: Any, name: str, depth: int) -> Any:
        if not isinstance(function, types.FunctionType):
            return self.rebound(function, name, depth + 1)
        for word in function.__code__.co_names:
            reached = function.__globals__.get(word)
            if self._is_original(reached):
                raise UnsupportedModelError(
                    f"{name} is the function {function.__qualname__!r}, which reaches the model by the global name "
                    f"{word!r}: a copy of the model cannot follow it. Make it a method of a subclass, or bind it with "
                    "types.MethodType(function, model) and use its first argument"
                )
        cells = function.__closure__ or ()
        defaults, named = function.__defaults__ or (), function.__kwdefaults__ or {}
        held = [*(_content(cell) for cell in cells), *defaults, *named.values()]
        found = [self.rebound(one, name, depth + 1) for one in held]
        if all(one is other for one, other in zip(held, found, strict=True)):
            return function
        closure = tuple(types.CellType(value) for value in found[: len(cells)])
        made = types.FunctionType(function.__code__, function.__globals__, function.__name__, None, closure)
        made.__defaults__ = tuple(found[len(cells) : len(cells) + len(defaults)]) or None
        made.__kwdefaults__ = dict(zip(named, found[len(cells) + len(defaults) :], strict=True)) or None
        made.__qualname__, made.__doc__ = function.__qualname__, function.__doc__
        return made

    def _is_original(self, value: Any) -> bool:
        owner = value.__self__ if isinstance(value, types.MethodType) else value
        return isinstance(owner, nn.Module) and id(owner) in self.twins


class _Empty:
    """What an empty cell of a closure holds."""


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return _Empty


def compiled_from(value: Any) -> Any:
    """Return what a result of `torch.compile` was made from; anything else as it is.

    Args:
        value: a function, a module or anything else.
    """
    for name in ("_torchdynamo_orig_callable", "_orig_mod"):
        found = vars(value).get(name) if hasattr(value, "__dict__") else None
        if found is not None:
            return found
    return value


def _is_method_of_class(value: Any, attribute: str, twins: dict[int, nn.Module], twin: nn.Module) -> bool:
    """Whether a value is what its class has under this name, bound to the module or to the one it was copied from."""
    if not isinstance(value, types.MethodType) or value.__func__ is not getattr(type(twin), attribute, None):
        return False
    return value.__self__ is twin or twins.get(id(value.__self__)) is twin
