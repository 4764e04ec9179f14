"""What is made of a model's name, against timm's own lists."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
from timm.models._registry import _deprecated_models, _model_pretrained_cfgs

import naflex_export as nx
from naflex_export.models.model_names import check_timm_name, understood
from naflex_export.models.timm_names import timm_names


def test_names_read_from_files_are_those_that_timm_has() -> None:
    names = timm_names()
    assert names is not None
    assert set(names.naflex) <= set(timm.list_models())
    assert set(timm.list_models(module="naflexvit")) == {name for name in names.naflex if name.startswith("naflexvit")}
    assert {"vit_base_patch16_224", "eva02_base_patch14_224"} <= set(names.naflex)
    tags = {f"{name}.{tag}" for name, known in names.naflex.items() for tag in known}
    assert len(tags) > 100 and tags <= set(_model_pretrained_cfgs)
    assert all(map(names.has_model, [*timm.list_models(), *_deprecated_models]))
    assert not any(map(names.has_model, ["siglip", "vit", "model", "timm", "url", "webli"]))


@pytest.mark.full
def test_no_name_that_timm_has_is_refused() -> None:
    names = timm_names()
    assert names is not None
    for name in _model_pretrained_cfgs:
        if name.partition(".")[0] in names.naflex:
            check_timm_name(name)
    check_timm_name("vit_base_patch16_224_in21k")  # a name of earlier releases, which timm still takes


SIGLIP2 = "google/siglip2-base-patch16-naflex"


@pytest.mark.parametrize(
    ("given", "name", "said"),
    [
        ("naflexvit_base_patch16_siglip", "naflexvit_base_patch16_siglip", ""),
        ("NaFlexViT_Base_Patch16_Siglip", "naflexvit_base_patch16_siglip", "is taken as naflexvit_base"),
        ("timm/naflexvit_base_patch16_siglip.v2_webli", "naflexvit_base_patch16_siglip.v2_webli", "timm's"),
        ("timm/mine", "hf-hub:timm/mine", "a repository of timm's on the hub"),
        (SIGLIP2, f"hf:{SIGLIP2}", "one of timm's there is hf-hub:"),
        (f"https://huggingface.co/{SIGLIP2}", f"hf:{SIGLIP2}", "as hf:"),
        (f"https://huggingface.co/{SIGLIP2}/tree/main", f"hf:{SIGLIP2}", "as hf:"),
        (f"hf:https://huggingface.co/{SIGLIP2}/?library=transformers", f"hf:{SIGLIP2}", ""),
        (f"{SIGLIP2}/", f"hf:{SIGLIP2}", "as hf:"),
        ("naflexvit_base_patch16_siglip/", "naflexvit_base_patch16_siglip", "is taken as naflexvit_base"),
        ("TIMM/NaFlexViT_Base_Patch16_Siglip", "naflexvit_base_patch16_siglip", "timm's"),
        ("Timm/mine", "hf-hub:timm/mine", "a repository of timm's on the hub"),
        (f"HF:{SIGLIP2}", f"hf:{SIGLIP2}", ""),
        ("hf:~/siglip", f"hf:{Path.home() / 'siglip'}", ""),
        ("hf_hub:timm/mine", "hf-hub:timm/mine", ""),
        ("tiny:siglip", "tiny:siglip", ""),
    ],
)  # fmt: skip
def test_a_name_is_understood_and_what_was_made_of_it_is_said(given: str, name: str, said: str) -> None:
    found = understood(given)
    assert found.name == name
    assert said in found.note if said else not found.note


def test_a_folder_says_whose_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip2"}))
    assert understood(str(tmp_path)).name == f"hf:{tmp_path}"
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "naflexvit_base_patch16_gap"}))
    assert understood(str(tmp_path)).name == f"local-dir:{tmp_path}"
    (tmp_path / "config.json").unlink()
    with pytest.raises(nx.RequestError, match="is a folder without a config.json"):
        understood(str(tmp_path))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("naflexvit_base_patch16_siglp", "does not exist; the closest are naflexvit_base_patch16_siglip, "),
        (
            "resnet50",
            "cannot be built as a NaFlexVit: it is another kind of model of timm's; no name of a NaFlexVit is close"
            ".*#not-a-naflexvit",
        ),
        ("naflexvit_base_patch16_siglip.v2_weblii", "the closest is naflexvit_base_patch16_siglip.v2_webli$"),
        ("w.safetensors", "is a file, or named as one: expected a model's name, and --weights w.safetensors"),
        ("", "model '' names nothing: expected a model's name"),
        ("hf:", "model 'hf:' names nothing behind hf: expected a folder, or a hub id there"),
        ("HF-HUB:", "names nothing behind hf-hub"),
        (":siglip", "model ':siglip' is no module:factory: expected the names of both"),
        ("tiny:", "is no module:factory"),
        ("no_such_module.models:make", "factory 'no_such_module.models:make' cannot be imported .*'no_such_module'"),
        (
            "SigLIP",
            "model 'SigLIP' does not exist; naflexvit_base_patch16_siglip, naflexvit_so400m_patch16_siglip, "
            "vit_base_patch32_siglip_256 and others hold that word; naflex-export --list shows all",
        ),
        ("./some/where/else", "does not exist: expected a folder with a config.json, a hub id"),
    ],
)
def test_a_name_of_nothing_is_refused_with_the_closest_once_each(given: str, message: str) -> None:
    with pytest.raises(nx.RequestError, match=message) as refused:
        understood(given)
    _, _, close = str(refused.value).partition("closest are ")
    listed = close.partition(";")[0].split(", ")
    assert len(listed) == len(set(listed))
