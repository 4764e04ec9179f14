"""What is made of a model is made of its own call: of an overridden or patched forward, of hooks, of a subclass."""

from __future__ import annotations

import copy
import functools
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from timm.models import NaFlexVit
from timm.models.naflexvit import NaFlexEmbeds
from torch import Tensor, nn
from torch.nn.utils import prune

import naflex_export as nx
from naflex_export.batch import Batch, noise_batch
from naflex_export.graph.trace import trace
from naflex_export.grid import Grid
from naflex_export.models import adapter_of
from naflex_export.models.copies import shared_copy, whole_copy
from naflex_export.models.model_sources import weights_sha256
from naflex_export.models.timm_naflex import VectorizedNaFlexEmbeds
from naflex_export.precision import Precision

BATCH = noise_batch("own-call", [Grid(3, 4), Grid(2, 2)], 12, 48)
INPUTS = (BATCH.patches, BATCH.patch_coord, BATCH.patch_valid)


def normalized(model: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return F.normalize(output, dim=-1)


class Unit(NaFlexVit):
    """A subclass whose forward does more."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return F.normalize(super().forward(*args, **kwargs), dim=-1)


def subclass(model: nn.Module) -> None:
    model.__class__ = Unit


def hook(model: nn.Module) -> None:
    model.register_forward_hook(normalized)


def hook_ahead(model: nn.Module) -> None:
    model.register_forward_pre_hook(lambda module, args: (2 * args[0], *args[1:]))


def hook_inside(model: nn.Module) -> None:
    model.blocks[0].register_forward_hook(lambda module, inputs, output: 3 * output)


def closure(model: nn.Module) -> None:
    own = model.forward
    model.forward = lambda *args, **kwargs: F.normalize(own(*args, **kwargs), dim=-1)


def wrapped(model: nn.Module) -> None:
    own = model.forward

    @functools.wraps(own)
    def forward(*args: Any, **kwargs: Any) -> Tensor:
        return F.normalize(own(*args, **kwargs), dim=-1)

    model.forward = forward


def method(model: nn.Module) -> None:
    own = type(model).forward
    model.forward = types.MethodType(lambda self, *args, **kwargs: 2 * own(self, *args, **kwargs), model)


def partial(model: nn.Module) -> None:
    model.forward = functools.partial(lambda own, *args, **kwargs: 2 * own(*args, **kwargs), model.forward)


def compiled(model: nn.Module) -> None:
    model.forward = torch.compile(model.forward, backend="eager")


def head(model: nn.Module) -> None:
    own = model.forward_head
    model.forward_head = lambda *args, **kwargs: 2 * own(*args, **kwargs)


PATCHES: dict[str, Callable[[nn.Module], None]] = {
    "subclass": subclass,
    "hook": hook,
    "hook-ahead": hook_ahead,
    "hook-inside": hook_inside,
    "closure": closure,
    "wrapped": wrapped,
    "method": method,
    "partial": partial,
    "compiled": compiled,
    "head": head,
}


@pytest.mark.parametrize("patch", PATCHES.values(), ids=PATCHES)
def test_a_copy_does_what_the_model_does_without_its_loop(
    patch: Callable[[nn.Module], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, plain = tiny.siglip(), tiny.siglip()
    patch(model)
    fast = nx.vectorize(model)
    with torch.no_grad():
        expected = model(*INPUTS)
        assert torch.equal(expected, plain(*INPUTS)) == (patch is compiled)  # or the patch does nothing
        monkeypatch.setattr(F, "interpolate", None)  # timm's loop would call it
        assert (fast(*INPUTS) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", ["subclass", "hook", "closure"])
def test_a_graph_is_made_of_the_models_own_call(name: str) -> None:
    model = tiny.shallow()
    PATCHES[name](model)
    program = trace(adapter_of(model), [nx.Bucket(24)], outputs=("tokens", "features"))
    with torch.no_grad():
        tokens, features = program.exported.module()(*INPUTS)
        expected, of_tokens = model(*INPUTS), model.forward_features(*INPUTS)["patches"]
    assert (features - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (tokens - of_tokens)[INPUTS[2]].abs().max() <= 1e-5 * of_tokens.abs().max()


def test_the_gate_sees_a_hook_that_a_candidate_leaves_out() -> None:
    model = tiny.siglip()
    hook(model)
    assert nx.gate(nx.vectorize(model), model, effort="quick").passed
    assert not nx.gate(nx.vectorize(tiny.siglip()), model, effort="quick").passed


def test_what_no_copy_can_follow_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.siglip()
    monkeypatch.setitem(globals(), "the_model", model)
    model.forward = lambda *args: NaFlexVit.forward(the_model, *args)  # type: ignore[name-defined]  # noqa: F821
    with pytest.raises(nx.UnsupportedModelError, match=r"forward is the function .* by the global name 'the_model'"):
        nx.vectorize(model)
    model = tiny.siglip()
    model.embeds.forward = lambda *args, **kwargs: NaFlexEmbeds.forward(model.embeds, *args, **kwargs)
    with pytest.raises(nx.UnsupportedModelError, match=r"embeds\.forward was replaced on the instance, by a function"):
        nx.vectorize(model)


def test_a_call_that_returns_no_tensor_is_refused() -> None:
    model = tiny.shallow()
    model.register_forward_hook(lambda module, inputs, output: (output, output))
    with pytest.raises(nx.BuildError, match="a call of the model, a NaFlexVit, returns a tuple: expected one tensor"):
        trace(adapter_of(model), [nx.Bucket(24)])


@pytest.mark.parametrize("copied", [shared_copy, whole_copy])
def test_pruned_models_and_hooks_that_store_activations_can_be_copied(copied: Callable[[nn.Module], nn.Module]) -> None:
    model, stored = tiny.siglip(), []
    prune.l1_unstructured(model.blocks[0].attn.proj, "weight", 0.3)
    torch.nn.utils.parametrizations.weight_norm(model.blocks[0].mlp.fc2)
    with warnings.catch_warnings(action="ignore"):
        torch.nn.utils.weight_norm(model.blocks[0].mlp.fc1)
    model.blocks[1].register_forward_hook(lambda module, inputs, output: stored.append(output))
    model.kept = model(*INPUTS)  # a tensor with a history, which torch cannot copy
    twin = copied(model)
    assert torch.equal(twin(*INPUTS), model(*INPUTS)) and len(stored) == 3
    assert list(twin.state_dict()) == list(model.state_dict())
    same = [one is other for one, other in zip(model.parameters(), twin.parameters(), strict=True)]
    assert all(same) if copied is shared_copy else not any(same)


def test_a_pruned_model_is_traced() -> None:
    model = tiny.shallow()
    prune.l1_unstructured(model.blocks[0].attn.proj, "weight", 0.3)
    program = trace(adapter_of(model), [nx.Bucket(24)], Precision("float32"))
    with torch.no_grad():
        (features,) = program.exported.module()(*INPUTS)
        expected = model(*INPUTS)
    assert (features - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert prune.is_pruned(model)


def changed_mode(model: nn.Module) -> None:
    model.train()


def changed_mode_inside(model: nn.Module) -> None:
    model.blocks[1].train()


def changed_head(model: nn.Module) -> None:
    model.reset_classifier(7)


def changed_weight(model: nn.Module) -> None:
    model.head.weight = nn.Parameter(2 * model.head.weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed_mode, "mode changed, to training mode in the model,"),
        (changed_mode_inside, r"mode changed, to training mode in blocks\.1,"),
        (changed_head, "layers were replaced in the model"),
        (changed_weight, "parameters were replaced in head"),
        (hook, "hooks changed on the model"),
    ],
)
@pytest.mark.parametrize("made", [nx.vectorize, functools.partial(nx.compile, backend="eager")], ids=["v", "c"])
def test_a_copy_warns_once_where_the_original_has_changed(
    change: Callable[[nn.Module], None], message: str, made: Callable[[nn.Module], nn.Module]
) -> None:
    model = tiny.classifier()
    fast = made(model)
    with torch.no_grad():
        fast(*INPUTS)
        change(model)
        with pytest.warns(UserWarning, match=f"the original model's {message}"):
            fast(*INPUTS)
        fast(*INPUTS)


def test_a_copy_in_a_mode_of_its_own_warns_of_nothing() -> None:
    model = tiny.classifier()
    fast = nx.vectorize(model).train()
    fast(*INPUTS)
    model.train()
    fast(*INPUTS)


def test_a_patched_class_is_found_by_the_look_at_the_embedding(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a release of timm would be in which an option means something else."""
    model, own = tiny.siglip(), VectorizedNaFlexEmbeds._lengths
    monkeypatch.setattr(VectorizedNaFlexEmbeds, "_lengths", lambda self, coord, size=None: own(self, coord.flip(-1)))
    nx.vectorize(model)
    monkeypatch.setattr(VectorizedNaFlexEmbeds, "add_position", lambda self, x, coord: x)
    with pytest.raises(nx.UnsupportedModelError, match="embeds grids of 2x3 and 3x2 patches otherwise"):
        nx.vectorize(model)
    monkeypatch.setattr(VectorizedNaFlexEmbeds, "add_position", None)
    with pytest.raises(nx.UnsupportedModelError, match="cannot be run where the original can"):
        nx.vectorize(model)


def shuffled(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    order = [3, 1, 2, 0, *range(4, 12)]
    return batch.patches[:, order], batch.patch_coord[:, order], batch.patch_valid[:, order]


@pytest.mark.parametrize("made", [nx.vectorize, functools.partial(nx.compile, backend="eager")], ids=["v", "c"])
def test_strict_refuses_tokens_out_of_order(made: Callable[..., nn.Module]) -> None:
    model = tiny.siglip()
    strict, fast = made(model, strict=True), made(model)
    with torch.no_grad():
        expected = model(*INPUTS)
        assert (strict(*INPUTS) - expected).abs().max() <= 1e-5 * expected.abs().max()
        with pytest.raises(nx.InputError, match="patch_coord of image 0 does not go row by row"):
            strict(*shuffled(BATCH))
        with pytest.raises(nx.InputError, match="patch_valid marks no token of image 1"):
            strict(
                BATCH.patches,
                BATCH.patch_coord * torch.tensor([[[1]], [[0]]]),
                BATCH.patch_valid & torch.tensor([[True], [False]]),
            )
        assert (fast(*shuffled(BATCH)) - expected).abs().max() <= 1e-5 * expected.abs().max()  # by coordinates


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.float32], ids=str)
def test_coordinates_of_any_dtype_are_whole_numbers(dtype: torch.dtype) -> None:
    model, batch = tiny.siglip(), noise_batch("tall", [Grid(60, 5)], 300, 48)
    fast = nx.vectorize(model)
    with torch.no_grad():
        expected = model(batch.patches, batch.patch_coord, batch.patch_valid)
        found = fast(batch.patches, batch.patch_coord.to(dtype), batch.patch_valid)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_transforms_of_functions_take_a_vectorized_model() -> None:
    model = tiny.siglip()
    fast = nx.vectorize(model)
    parameters = dict(fast.named_parameters())

    def loss(given: dict[str, Tensor], *inputs: Tensor) -> Tensor:
        return torch.func.functional_call(fast, given, inputs).square().sum()

    found = torch.func.grad(loss)(parameters, *INPUTS)["embeds.pos_embed"]
    (expected,) = torch.autograd.grad(model(*INPUTS).square().sum(), [model.embeds.pos_embed])
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    one = torch.func.vmap(
        torch.func.grad(lambda given, *image: loss(given, *(part[None] for part in image))), (None, 0, 0, 0)
    )
    each = one(parameters, *INPUTS)["embeds.pos_embed"]
    assert (each.sum(dim=0) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_modes_and_wrappers_are_named_before_anything_is_built(tmp_path: Path) -> None:
    model = tiny.siglip()
    with torch.inference_mode(), pytest.raises(nx.RequestError, match=r"nx\.export was called inside .*inference_mode"):
        nx.export(model, "onnx", tmp_path / "a")
    with torch.autocast("cpu"), pytest.raises(nx.RequestError, match=r"nx\.gate was called under torch\.autocast"):
        nx.gate(model, model)
    model._original_forward = model.forward
    with pytest.raises(nx.UnsupportedModelError, match=r"prepared by accelerate.*unwrap_model"):
        nx.export(model, "onnx", tmp_path / "a")
    with warnings.catch_warnings(action="ignore"):
        quantized = torch.ao.quantization.quantize_dynamic(tiny.siglip(), {nn.Linear})
    with pytest.raises(nx.UnsupportedModelError, match=r"is a quantized layer, .*before it was quantized"):
        nx.export(quantized, "onnx", tmp_path / "a")


class Linear8bitLt(nn.Linear):
    """As bitsandbytes has it, by its name."""

    __module__ = "bitsandbytes.nn.modules"


class Int8Tensor(Tensor):
    """A subclass that computes for itself, as torchao's do."""

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotImplementedError("as torchao's raise for what they have not")


def offloaded(model: Any) -> nn.Module:
    vars(model.blocks[0])["_hf_hook"] = object()
    return model


def in_8_bits(model: Any) -> nn.Module:
    model.embeds.proj.__class__ = Linear8bitLt
    return model


def observed(model: Any) -> nn.Module:
    with warnings.catch_warnings(action="ignore"):
        model.qconfig = torch.ao.quantization.get_default_qconfig("x86")
        return torch.ao.quantization.prepare(model)


def weight_only(model: Any) -> nn.Module:
    plain = model.embeds.proj.weight.detach()
    model.embeds.proj._parameters["weight"] = Tensor._make_subclass(Int8Tensor, plain)
    return model


def on_meta(model: Any) -> nn.Module:
    return model.to("meta")


@pytest.mark.parametrize(
    ("change", "said", "can_vectorize"),
    [
        (offloaded, r"accelerate has put a hook on blocks.0 .*remove_hook_from_module", False),
        (in_8_bits, r"embeds.proj is a (quantized layer, )?bitsandbytes.nn.modules.Linear8bitLt", False),
        (observed, "has a qconfig: it is prepared to be quantized by torch.ao", False),
        (weight_only, "embeds.proj.weight is a Int8Tensor, quantized or spread over devices", True),
        (on_meta, "has no values, it is on the meta device: load the weights first", True),
    ],
    ids=["accelerate", "bitsandbytes", "torch-ao", "torchao", "meta"],
)
def test_what_other_libraries_put_on_a_model_is_named(
    change: Callable[[Any], nn.Module], said: str, can_vectorize: bool, tmp_path: Path
) -> None:
    """As accelerate 1.15, bitsandbytes 0.50 and torchao 0.18 do it: by export, by the gate, and by what copies."""
    model = change(tiny.siglip())
    with pytest.raises(nx.UnsupportedModelError, match=said):
        nx.export(model, "onnx", tmp_path / "a")
    with pytest.raises(nx.UnsupportedModelError, match=said):
        nx.gate(lambda *inputs: inputs[0], model)
    if not can_vectorize:
        with pytest.raises(nx.UnsupportedModelError, match=said):
            nx.vectorize(model)


def fault_of_an_ignored_mask(model: nn.Module) -> bool:
    """Whether the gate sees that a candidate takes padding for tokens, in which no pooling helps it."""

    def deaf(patches: Tensor, coord: Tensor, valid: Tensor) -> Tensor:
        return model(patches, coord, torch.ones_like(valid))

    report = nx.gate(deaf, model, buckets=[24], outputs=["features"], effort="quick")
    return any("masking a valid token did not move" in failure for failure in report.failures)


def test_unpooled_features_are_compared_where_they_are_valid(tmp_path: Path) -> None:
    model = tiny.naflexvit("naflexvit_base_patch16_gap", num_classes=0, global_pool="", depth=1)
    run = nx.load(nx.export(model, "onnx", tmp_path / "a", buckets=[24], outputs=("features",), effort="quick").path)
    assert fault_of_an_ignored_mask(model)
    with torch.no_grad():
        expected = model(*INPUTS)
    prefix = model.num_prefix_tokens
    assert (run(*INPUTS) - expected)[:, prefix:][INPUTS[2]].abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize(
    ("options", "kept", "output"),
    [
        ({}, {"indices": [0]}, "tokens"),
        ({}, {"indices": [0], "prune_norm": True}, "tokens"),
        ({}, {"indices": [0], "prune_head": False}, "features"),
        ({"pos_embed": "none", "rope_type": "mixed"}, {"indices": [0]}, "tokens"),
    ],
    ids=["pruned", "without-norm", "head-kept", "mixed-rope"],
)
def test_a_model_pruned_of_its_last_layers_is_judged_by_what_it_gives(
    options: dict[str, Any], kept: dict[str, Any], output: str
) -> None:
    """By `prune_intermediate_layers`, which takes pooling and head off too: then `forward` gives tokens."""
    model: Any = tiny.naflexvit("naflexvit_base_patch16_gap", num_classes=10, **options)
    model.prune_intermediate_layers(**kept)
    model.eval()
    assert len(model.blocks) == 1
    report = nx.gate(nx.vectorize(model), model, buckets=[16], effort="quick")
    assert report.passed and {result.output for result in report.results} == {output}
    wrong = nx.vectorize(copy.deepcopy(model))
    with torch.no_grad():
        wrong.blocks[0].mlp.fc2.bias += 0.05
    assert not nx.gate(wrong, model, buckets=[16], effort="quick").passed
    assert adapter_of(model).default_outputs == (output,)


def test_a_report_says_which_weights_the_reference_had() -> None:
    """Halving a vectorized copy rounds the original too: it is no reference then, and its hash is another."""
    model = tiny.siglip()
    before = nx.gate(nx.vectorize(model), model, buckets=[24], cases=["mixed-24-seed0"]).reference_sha256
    fast = nx.vectorize(model)
    assert before == nx.gate(fast, model, buckets=[24], cases=["mixed-24-seed0"]).reference_sha256 != ""
    fast.half().float()
    with pytest.raises(nx.RequestError, match="weights were rounded to float16 since"):
        nx.gate(fast, model, buckets=[24], cases=["mixed-24-seed0"])
    assert weights_sha256(model) != before
