"""The survey: sizes that no case has, and faults that show only when a candidate is called again, or otherwise."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import conftest
import pytest
import tiny
import torch
from sized_faults import BUCKET, NAMED, Fault, found_by
from torch import Tensor, nn

import naflex_export as nx
from naflex_export.accuracy.cases import cases_of, generated_batch, survey_names
from naflex_export.accuracy.efforts import EFFORTS, CaseSelection, difference_from_standard
from naflex_export.accuracy.sampling import cells_of
from naflex_export.grid import Grid

pytestmark = pytest.mark.usefixtures("survey")

SMALL = nx.Bucket(24, (1, 4, 8))
Candidate = Callable[..., Any]


def remembers(self: Misbehaving, *inputs: Tensor) -> Tensor:
    key = (*inputs[0].shape, round(float(inputs[0].sum()), 1))
    return self.kept.setdefault(key, self.model(*inputs))


def reuses_its_buffer(self: Misbehaving, *inputs: Tensor) -> Tensor:
    found = self.model(*inputs)
    kept: Tensor = self.kept.setdefault(found.shape, found.clone())
    return kept.copy_(found)


def changes_its_input(self: Misbehaving, *inputs: Tensor) -> Tensor:
    found: Tensor = self.model(*inputs)
    inputs[0].mul_(0.5)
    return found


def takes_zeros_for_padding(self: Misbehaving, *inputs: Tensor) -> Tensor:
    found: Tensor = self.model(*inputs[:2], inputs[2] & (inputs[0].abs().sum(-1) > 0))
    return found


def is_wrong_on_a_third_call_of_a_shape(self: Misbehaving, *inputs: Tensor) -> Tensor:
    calls = self.kept[inputs[0].shape] = self.kept.get(inputs[0].shape, 0) + 1
    return self.model(*inputs) * (1.5 if calls == 3 else 1)


def is_wrong_where_it_grows(self: Misbehaving, *inputs: Tensor) -> Tensor:
    most, size = self.kept.get("most", 0), inputs[2].numel()
    self.kept["most"] = max(most, size)
    return self.model(*inputs) * (1.5 if 0 < most < size else 1)


def takes_plausible_padding_for_content(self: Misbehaving, *inputs: Tensor) -> Tensor:
    largest = inputs[0].abs().amax(-1)
    found: Tensor = self.model(*inputs[:2], inputs[2] | ((largest > 0) & (largest <= 1.5)))
    return found


def is_wrong_for_black_images_alone(self: Misbehaving, *inputs: Tensor) -> Tensor:
    is_black = len(inputs[0]) == 1 and float(inputs[0].max()) < -0.9
    return self.model(*inputs) * (1.5 if is_black else 1)


def is_wrong_for_bright_images_with_padding(self: Misbehaving, *inputs: Tensor) -> Tensor:
    patches, _, valid = inputs
    means = torch.stack([image[there].mean() for image, there in zip(patches, valid, strict=True)])
    return self.model(*inputs) * torch.where((means > 0.9) & ~valid.all(dim=1), 1.5, 1.0).unsqueeze(1)


def is_silent_on_nan(self: Misbehaving, *inputs: Tensor) -> Tensor:
    found: Tensor = self.model(inputs[0].nan_to_num(0) * (0.9 if inputs[0].isnan().any() else 1), *inputs[1:])
    return found


class Misbehaving(nn.Module):
    """A right model that is called in one of the ways above, and keeps things for it."""

    def __init__(self, way: Callable[..., Tensor]) -> None:
        super().__init__()
        self.model, self.way, self.kept = tiny.siglip(), way, dict[Any, Any]()

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.way(self, *inputs)


@pytest.mark.parametrize(
    "way",
    [
        remembers,
        reuses_its_buffer,
        changes_its_input,
        takes_zeros_for_padding,
        is_wrong_on_a_third_call_of_a_shape,
        is_wrong_where_it_grows,
        takes_plausible_padding_for_content,
        is_wrong_for_black_images_alone,
        is_wrong_for_bright_images_with_padding,
        is_silent_on_nan,
    ],
)
def test_a_candidate_that_is_right_the_first_time_is_rejected(way: Callable[..., Tensor]) -> None:
    assert not nx.gate(Misbehaving(way), tiny.siglip(), buckets=[SMALL]).passed


def test_what_is_not_asked_for_is_the_survey() -> None:
    """The default as users have it, which tests elsewhere leave out."""
    assert EFFORTS == conftest.EFFORTS and EFFORTS["standard"].sampled
    assert difference_from_standard("standard") == "" and "spread too" in difference_from_standard("quick")
    report = nx.gate(nx.vectorize(tiny.siglip()), tiny.siglip(), buckets=[SMALL])
    assert report.passed and report.survey is not None and report.survey.batches > 15 and report.survey.calls >= 104


@pytest.mark.full
def test_an_export_surveys_by_default(tmp_path: Path) -> None:
    path = nx.export(tiny.siglip(), "onnx", tmp_path / "a", [SMALL]).path
    survey = json.loads((path / "gate" / "report.json").read_text())["survey"]
    assert survey["batches"] > 15 and survey["calls"] >= 104 and not survey["not_done"]


def test_the_quick_effort_spreads_a_few_small_batches_over_all_sizes() -> None:
    selection = CaseSelection(effort="quick", fresh_seed=0)
    names = cases_of(BUCKET, selection, num_photos=3)
    spread = [name for name in names if name.startswith("spread")]
    assert 5 <= len(spread) <= 8 and sum(generated_batch(name, BUCKET, 1).patch_valid.numel() for name in spread) < 600
    missed = [name for name, fault in NAMED.items() if not found_by(fault, [n for n in names if "photos" not in n])]
    assert missed == ["128 tokens", "122 to 254 tokens", "14x14"]
    assert cases_of(BUCKET, CaseSelection(only=(spread[1],)), num_photos=0) == [spread[1]]
    report = nx.gate(WrongAtSomeSizes(NAMED["batch of 16"]), tiny.siglip(), buckets=[BUCKET], effort="quick")
    assert any(failure.startswith("spread") for failure in report.failures)
    assert not any(name.startswith("spread") for name in cases_of(BUCKET, CaseSelection(), num_photos=0))


class WrongAtSomeSizes(nn.Module):
    """A right model whose answers for the images that a fault strikes are half as large again."""

    def __init__(self, fault: Fault) -> None:
        super().__init__()
        self.model, self.fault = tiny.siglip(), fault

    def forward(self, patches: Tensor, coord: Tensor, valid: Tensor) -> Tensor:
        out = self.model(patches, coord, valid)
        sizes = (coord.amax(dim=1) + 1).tolist()
        struck = torch.tensor([self.fault(*valid.shape, Grid(*size)) for size in sizes])
        return torch.where(struck.unsqueeze(1), 1.5 * out, out)


@pytest.mark.parametrize("name", ["14x14"])
def test_a_candidate_that_is_wrong_at_some_sizes_is_rejected(name: str) -> None:
    wrong = WrongAtSomeSizes(NAMED[name])
    report = nx.gate(wrong, tiny.siglip())
    assert not report.passed and report.survey is not None
    (first, *_) = [result.case for result in report.results if result.exceeded]
    assert first.split("-")[0] in ("sampled", "holes", "extreme", "fresh")
    again = nx.gate(wrong, tiny.siglip(), cases=[first])  # whatever its kind and seed
    assert [result.case for result in again.results] == [first] and not again.passed


@pytest.mark.full
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", [name for name in NAMED])
def test_every_candidate_that_is_wrong_at_some_sizes_is_rejected(name: str, dtype: str) -> None:
    wrong = WrongAtSomeSizes(NAMED[name]).to(getattr(torch, dtype))
    assert not nx.gate(wrong, tiny.siglip(), dtype=dtype).passed


def padding_of(patches: Tensor, valid: Tensor) -> Tensor:
    """Return the values that padding holds."""
    return patches[~valid]


class Odd:
    """A right model that is wrong in one way when it is called; `outputs` are those that it gives."""

    def __init__(self, how: str, outputs: tuple[str, ...] = ("features",)) -> None:
        self.model, self.how, self.outputs = tiny.siglip(), how, outputs
        self.calls, self.seen = 0, list[Tensor]()
        self.buffer = torch.zeros(8, 24, 48)

    def __call__(self, patches: Tensor, coord: Tensor, valid: Tensor) -> Any:
        self.calls += 1
        cleaned = self.how in ("NaN in padding", "infinity in padding", "1e30 in padding")  # as a Runner takes them
        fed = torch.where(valid.unsqueeze(-1), patches, 0) if cleaned else patches
        whole = self.model.forward_features(fed, patch_coord=coord, patch_valid=self.mask(coord, valid))
        tokens = whole["patches"]
        features = self.model.forward_head(tokens, patch_valid=valid)
        given = {"features": features, "tokens": tokens}
        if self.is_wrong(patches, coord, valid):
            given = {name: 1.5 * out for name, out in given.items()}
        given["tokens"] = self.bent(given["tokens"], patches, valid)
        found = {name: given[name] for name in self.outputs}
        if self.how == "float64":
            found = {name: out.double() for name, out in found.items()}
        return found if len(found) > 1 else found[self.outputs[0]]

    def mask(self, coord: Tensor, valid: Tensor) -> Tensor:
        """Return the mask that the model gets: of a fault that ignores holes, the one that the coordinates say."""
        if self.how == "hole in front ignored":
            return torch.cat([valid.new_ones(len(valid), 1), valid[:, 1:]], dim=1)
        if self.how != "hole ignored":
            return valid
        return torch.arange(valid.shape[1]) < (coord.amax(dim=1) + 1).prod(dim=1, keepdim=True)

    def is_wrong(self, patches: Tensor, coord: Tensor, valid: Tensor) -> bool:
        padding = padding_of(patches, valid)
        constant = any(len(p[v].unique()) == 1 for p, v in zip(patches, valid, strict=True))
        means = torch.stack([p[v].mean() for p, v in zip(patches, valid, strict=True)])
        known = any(torch.equal(patches, before) for before in self.seen)
        if self.how == "second time":
            self.seen.append(patches.clone())
        return {
            "padding above 1000": bool((padding.abs() > 1000).any()),
            "NaN in padding": bool(padding.isnan().any()),
            "infinity in padding": bool(padding.isinf().any()),
            "1e30 in padding": bool((padding.abs() > 1e29).any()),
            "a patch of zeros": bool(((patches == 0).all(-1) & valid & (patches != 0).any((1, 2), True)[..., 0]).any()),
            "constant images": constant,
            "dark images": bool((means < -0.9).any()),
            "very bright images": bool((means > 2.5).any()),
            "after 20 calls": self.calls > 20,
            "second time": known,
            "once in a hundred": self.calls % 100 == 0,
        }.get(self.how, False)

    def bent(self, tokens: Tensor, patches: Tensor, valid: Tensor) -> Tensor:
        if self.how == "tokens and padding":
            padding = torch.where(valid.unsqueeze(-1), 0, patches)
            return tokens + 1e-3 * padding.abs().amax(dim=(1, 2), keepdim=True)
        if self.how == "tokens leak":
            largest_B = patches.abs().amax(dim=(1, 2))
            others_B = largest_B.sum() - largest_B
            return tokens + torch.where(others_B > 100, 1e-2, 0.0)[:, None, None]
        return tokens


CALLED = {
    "padding above 1000": "behaviour: large values in padding moved",
    "NaN in padding": "behaviour: NaN in padding moved",
    "infinity in padding": "behaviour: infinity in padding moved",
    "1e30 in padding": "behaviour: huge values in padding moved",
    "a patch of zeros": "extreme-1-24-seed0 [features]",
    "constant images": "extreme-0-24-seed0 [features]",
    "dark images": "extreme-0-24-seed0 [features]",
    "very bright images": "extreme-0-24-seed0 [features]",
    "after 20 calls": "sampled-",
    "second time": "behaviour: the same input again moved",
    "once in a hundred": "behaviour: ",
    "float64": "the candidate's dtype is float64, expected float32",
}


@pytest.mark.parametrize("how", CALLED)
def test_a_candidate_that_is_wrong_in_some_calls_is_rejected(how: str) -> None:
    report = nx.gate(Odd(how), tiny.siglip(), buckets=[SMALL])
    assert any(CALLED[how] in failure for failure in report.failures), report.failures


TOLD = {
    "tokens and padding": "padding's content [tokens]",
    "tokens leak": "the content of other images moved",
    "hole ignored": "holes-0-24-seed0 [tokens]",
    "hole in front ignored": "holes-0-24-seed0 [tokens]",
}


@pytest.mark.parametrize("how", TOLD)
@pytest.mark.parametrize("outputs", [("tokens",), ("features", "tokens")], ids=["tokens", "both"])
def test_tokens_that_are_wrong_where_features_are_right_are_rejected(how: str, outputs: tuple[str, ...]) -> None:
    """Of `tokens` alone too, of which no invariance of the features is asked."""
    report = nx.gate(Odd(how, outputs), tiny.siglip(), buckets=[SMALL], outputs=outputs)
    assert report.survey is not None
    told = [*report.failures, *(one.name for one in report.survey.behaviours if one.failure)]
    assert any(TOLD[how] in text for text in told), told


def test_a_mask_that_tokens_alone_ignore_is_seen() -> None:
    model = tiny.siglip()

    def candidate(patches: Tensor, coord: Tensor, valid: Tensor) -> Tensor:
        """The mask is made from coordinates: the same, until a caller masks anything else."""
        said = torch.arange(valid.shape[1]) < (coord.amax(dim=1) + 1).prod(dim=1, keepdim=True)
        return model.forward_features(patches, patch_coord=coord, patch_valid=said)["patches"]

    report = nx.gate(candidate, tiny.siglip(), buckets=[SMALL], outputs=["tokens"])
    assert "masking a valid token did not move the tokens: is the mask ignored?" in "; ".join(report.failures)


def test_a_candidate_that_threads_disturb_is_rejected() -> None:
    model, buffer = tiny.siglip(), {}

    def candidate(*inputs: Tensor) -> Tensor:
        buffer["inputs"] = inputs
        time.sleep(0.002)  # other threads have a turn
        return model(*buffer["inputs"])

    report = nx.gate(candidate, tiny.siglip(), buckets=[SMALL])
    (found,) = report.failures
    assert found.startswith("behaviour: calls from 4 threads at once")


def test_a_candidate_that_threads_disturb_in_one_shape_alone_is_rejected() -> None:
    """Static inputs for each shape, as captured graphs have them."""
    model, buffers = tiny.siglip(), dict[Any, Tensor]()

    def candidate(patches: Tensor, coord: Tensor, valid: Tensor) -> Tensor:
        static = buffers.setdefault(patches.shape, torch.empty_like(patches)).copy_(patches)
        time.sleep(0.002)
        found: Tensor = model(static, coord, valid)
        return found

    report = nx.gate(candidate, tiny.siglip(), buckets=[SMALL])
    (found,) = report.failures
    assert found.startswith("behaviour: calls from 4 threads at once")


def test_a_candidate_that_knows_the_cases_by_heart_is_rejected() -> None:
    """All batches of the fixed seed: what is drawn anew in each run is not among them."""
    model, selection = tiny.siglip(), CaseSelection()
    names = [*cases_of(SMALL, selection, 0), *survey_names(SMALL, selection)]
    known = {bytes(generated_batch(name, SMALL, 48).patches[0, 0].numpy()) for name in names if "fresh" not in name}

    def candidate(patches: Tensor, coord: Tensor, valid: Tensor) -> Tensor:
        out = model(patches, coord, valid)
        return out if bytes(patches[0, 0].numpy()) in known or (patches.std() > 0 and patches.max() <= 1.0) else 2 * out

    report = nx.gate(candidate, tiny.siglip(), buckets=[SMALL])
    assert any(failure.startswith("fresh-") for failure in report.failures)
    assert report.survey is not None and f"seed{report.survey.fresh_seed} " in "; ".join(report.failures)


@pytest.fixture
def no_threads_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("make", "dtype"),
    [
        (tiny.siglip, "float32"),
        (tiny.classifier, "bfloat16"),
        (tiny.siglip2, "float32"),
        *(
            pytest.param(make, dtype, marks=pytest.mark.full)
            for make in (tiny.siglip, tiny.classifier, tiny.siglip2)
            for dtype in ("float32", "float16", "bfloat16")
        ),
    ],
)
@pytest.mark.usefixtures("no_threads_left")
def test_a_right_candidate_passes_and_says_what_was_covered(make: Callable[[], nn.Module], dtype: str) -> None:
    if make is tiny.siglip2:
        pytest.importorskip("transformers")
    candidate = nx.vectorize(make()).to(getattr(torch, dtype))
    report = nx.gate(candidate, make(), buckets=[SMALL], dtype=dtype)
    assert report.passed, report.failures
    survey = report.survey
    assert survey is not None and survey.calls >= 104
    covered, cells = survey.covered
    assert 0.85 * cells < covered < cells == len(cells_of(SMALL))


def test_a_candidate_that_fails_before_is_not_surveyed() -> None:
    report = nx.gate(lambda *inputs: 1.2 * tiny.siglip()(*inputs), tiny.siglip(), buckets=[SMALL])
    assert report.survey is not None and not report.survey.batches
    assert report.survey.not_done == "the candidate failed before all sizes were looked at"


def change_eps(model: nn.Module) -> None:
    """Give every norm an eps of 1e-5 for 1e-6."""
    for norm in model.modules():
        if isinstance(norm, nn.LayerNorm):
            norm.eps = 1e-5


def round_position(model: Any) -> None:
    """Round the position embedding to float16."""
    with torch.no_grad():
        model.embeds.pos_embed.copy_(model.embeds.pos_embed.half())


@pytest.mark.parametrize("make", [tiny.siglip, tiny.classifier])
def test_a_float32_gate_sees_small_faults_in_parameters(make: Callable[[], nn.Module]) -> None:
    """They measure at least twice the limit of relative L2, and what is right a tenth of it."""
    for change in (change_eps, round_position):
        model = make()
        change(model)
        report = nx.gate(model, make(), buckets=[SMALL], effort="quick")
        assert not report.passed and (report.worst["relative_l2"] or 0) > 2e-5
    right = nx.gate(nx.vectorize(make()), make(), buckets=[SMALL], effort="quick")
    assert right.passed and (right.worst["relative_l2"] or 1) < 1e-6
