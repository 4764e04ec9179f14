"""Golden packs: a right port passes, and each fault planted in a port of its own is rejected and mostly named."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from click.testing import CliRunner
from numpy_port import FAULTS, Port
from photo_port import FAULTS as PHOTO_FAULTS
from photo_port import patches_of

import naflex_export as nx
from naflex_export.cli.gate import gate_command
from naflex_export.models.model_sources import randomize
from naflex_export.packs.answers import Answers, from_files, vector_in, vectors_in
from naflex_export.packs.judge import Verdict, judge_answers
from naflex_export.packs.opened import Pack
from naflex_export.packs.write import write_pack

NAMED_OTHERWISE = {"height-width-swapped": "axes-swapped", "first-block-missing": ""}
"""What the diagnosis says of a fault that a pack knows by another name, or not at all."""


@pytest.fixture(scope="module")
def weights() -> dict[str, Any]:
    return {name: value.numpy() for name, value in tiny.siglip().state_dict().items()}


def ported(pack: Pack, weights: dict[str, Any], fault: str = "") -> Answers:
    port, features, stages = Port(weights, fault), {}, {}
    for case in pack.cases:
        features[case], shown = port(*pack.inputs(case).values())
        if pack.stages(case):
            stages[case] = shown
    return Answers(features, "the port", stages)


def test_a_right_port_passes_without_a_diagnosis(pack: Pack, weights: dict[str, Any]) -> None:
    verdict = judge_answers(pack, ported(pack, weights))
    assert verdict.passed and not verdict.diagnosis and not verdict.stage
    assert max(one.measures.relative_l2 for one in verdict.cases) < 1e-6
    verdict.raise_for_failure()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_port_with_a_fault_is_rejected_and_the_fault_named(pack: Pack, weights: dict[str, Any], fault: str) -> None:
    verdict = judge_answers(pack, ported(pack, weights, fault))
    assert not verdict.passed and verdict.fault == NAMED_OTHERWISE.get(fault, fault)
    assert verdict.stage or fault == "norm-eps"
    with pytest.raises(nx.GateFailure, match="the answers are wrong"):
        verdict.raise_for_failure()


@pytest.mark.parametrize("seed", [2, 3])
def test_right_ports_of_other_models_have_no_diagnosis(seed: int, tmp_path: Path) -> None:
    model = tiny.siglip()
    randomize(model, seed)
    write_pack(model, tmp_path / "pack", small=True)
    pack = Pack.open(tmp_path / "pack")
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    for answers in (ported(pack, weights), from_photos(pack, weights), answered(pack, nx.vectorize(model))):
        verdict = judge_answers(pack, answers)
        assert verdict.passed and not verdict.diagnosis and not verdict.fault and not verdict.stage
    for dtype in ("float16", "bfloat16"):
        low = answered(pack, nx.vectorize(model).to(getattr(torch, dtype)))
        verdict = judge_answers(pack, low, dtype)
        assert verdict.passed and not verdict.diagnosis
        named = judge_answers(pack, low)
        assert not named.passed and named.fault == dtype


def answered(pack: Pack, model: Any) -> Answers:
    """Return what a model of torch answers."""
    dtype, features = next(model.parameters()).dtype, {}
    for case in pack.cases:
        given = [torch.from_numpy(array) for array in pack.inputs(case).values()]
        with torch.no_grad():
            found = model(given[0].to(dtype), *given[1:])
        features[case] = getattr(found, "pooler_output", found).float().numpy()
    return Answers(features, "torch")


def from_photos(pack: Pack, weights: dict[str, Any], fault: str = "") -> Answers:
    """Return what a port answers to a pack's photos, its own preprocessing done."""
    said, features = pack.manifest["preprocessing"], {}
    for case in pack.photo_cases:
        made = [patches_of(photo, 4, said["mean"], said["std"], fault) for photo in pack.photos(case)]
        vectors = []
        for patches, (height, width) in made:
            coord = np.stack(np.divmod(np.arange(height * width), width), axis=1)
            vectors.append(Port(weights).image(patches, coord, np.ones(height * width, dtype=bool)))
        features[case] = np.stack(vectors)
    return Answers(features, "the port, from photos")


def test_a_port_that_prepares_photos_right_passes(pack: Pack, weights: dict[str, Any]) -> None:
    verdict = judge_answers(pack, from_photos(pack, weights))
    assert (
        verdict.passed and not verdict.diagnosis and [one.case for one in verdict.cases] == ["photos", "turned-photo"]
    )


@pytest.mark.parametrize("fault", PHOTO_FAULTS)
def test_a_fault_on_the_way_from_a_photo_is_named(pack: Pack, weights: dict[str, Any], fault: str) -> None:
    verdict = judge_answers(pack, from_photos(pack, weights, fault))
    assert not verdict.passed and verdict.fault == fault


def test_photos_that_alone_are_wrong_are_said_to_be(pack: Pack, weights: dict[str, Any]) -> None:
    answers = ported(pack, weights)
    draw = np.random.default_rng(0)
    moved = {case: value + draw.standard_normal(value.shape) for case, value in answers.features.items()}
    features = answers.features | {case: moved[case] for case in pack.photo_cases}
    verdict = judge_answers(pack, Answers(features, "the port"))
    assert not verdict.fault and "only photos are wrong" in verdict.diagnosis
    assert "look at the stages" in judge_answers(pack, Answers(moved, "the port")).diagnosis


def test_low_precision_is_judged_by_eagers_own_noise(pack: Pack, weights: dict[str, Any]) -> None:
    right = ported(pack, weights)
    draw = np.random.default_rng(0)

    def noisy(share: float) -> Verdict:
        bent = {
            case: one + share * np.linalg.norm(one) / one.size**0.5 * draw.standard_normal(one.shape)
            for case, one in right.features.items()
        }
        return judge_answers(pack, Answers(bent, "noise"), "float16")

    assert noisy(9e-4).passed and not noisy(4e-3).passed
    for dtype in ("float16", "bfloat16"):
        rounded = {name: torch.tensor(one).to(getattr(torch, dtype)).float().numpy() for name, one in weights.items()}
        assert judge_answers(pack, ported(pack, rounded)).fault == dtype


def test_packs_are_the_same_bytes_each_time_and_small(pack: Pack, tmp_path: Path) -> None:
    write_pack(tiny.siglip(), tmp_path / "again", small=True, name="tiny")
    assert digests(tmp_path / "again") == digests(pack.path)
    assert sum(path.stat().st_size for path in pack.path.rglob("*") if path.is_file()) < 10 * 2**20
    readme = (pack.path / "README.md").read_text(encoding="utf-8")
    assert "naflex-gate judge PACK" in readme and "`bgr`" in readme and "None" not in readme


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("what", ["flipped", "missing", "manifest"])
def test_a_damaged_pack_names_the_file(pack: Pack, tmp_path: Path, what: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(pack.path, copy)
    file = copy / "cases" / "mixed" / "expected" / "features.npy"
    if what == "flipped":
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    elif what == "missing":
        file.unlink()
    else:
        (copy / "manifest.json").write_text("{")
    named = "manifest.json" if what == "manifest" else "cases/mixed/expected/features.npy"
    with pytest.raises(nx.RequestError, match=named):
        Pack.open(copy)


def test_a_folder_that_exists_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(nx.RequestError, match="exists: a pack is written to a folder that does not"):
        write_pack(tiny.siglip(), tmp_path)


def run(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(gate_command, [str(word) for word in words])
    return done.exit_code, done.output


def written(pack: Pack, weights: dict[str, Any], folder: Path, fault: str = "") -> Path:
    answers = ported(pack, weights, fault)
    for case, features in answers.features.items():
        (folder / case / "stages").mkdir(parents=True, exist_ok=True)
        np.save(folder / f"{case}.npy", features.astype(np.float32))
        for stage, value in answers.stages.get(case, {}).items():
            np.save(folder / case / "stages" / f"{stage}.npy", value)
    return folder


def half_of(value: Any) -> Any:
    return value.astype(np.float16)


BENT: dict[str, tuple[Any, str]] = {
    "noise within the limit": (lambda value, noise: value + 9e-6 * noise, ""),
    "noise above the limit": (lambda value, noise: value + 2e-5 * noise, "none of the "),
    "noise of 16 bits": (lambda value, noise: value + 4e-4 * noise, "none of the "),
    "float16 at the end": (lambda value, noise: half_of(value), "rounded-to-float16: vectors are right"),
    "bfloat16 at the end": (
        lambda value, noise: torch.from_numpy(value).bfloat16().float().numpy(),
        "rounded-to-bfloat16: vectors are right",
    ),
    "length 1": (lambda value, noise: value / np.linalg.norm(value, axis=1, keepdims=True), "another length, all 1;"),
    "length 1 in float16": (
        lambda value, noise: half_of(value / np.linalg.norm(value, axis=1, keepdims=True)),
        "another length, all 1;",
    ),
    "twice as long": (lambda value, noise: 2 * value, "all 2 times the right one"),
    "another order": (lambda value, noise: np.roll(value, 1, axis=0), "but of other images of their batch: row 0"),
    "turned round": (lambda value, noise: -value, "none of the "),
}


@pytest.mark.parametrize("bent", BENT)
def test_what_is_said_of_right_vectors_that_are_bent_is_true(pack: Pack, bent: str) -> None:
    draw, (bend, said) = np.random.default_rng(0), BENT[bent]
    features = {}
    for case in pack.cases:
        right = pack.expected(case)
        noise = np.linalg.norm(right) / right.size**0.5 * draw.standard_normal(right.shape)
        features[case] = bend(right, noise).astype(np.float32)
    verdict = judge_answers(pack, Answers(features, "a port"))
    assert verdict.passed == (not said) and said in verdict.diagnosis, verdict.diagnosis
    assert bool(verdict.fault) == (said not in ("", "none of the "))


def test_no_case_is_called_right_where_all_together_are_wrong(pack: Pack) -> None:
    draw = np.random.default_rng(0)
    features = {}
    for case in pack.cases:
        right = pack.expected(case)
        features[case] = right + 3e-3 * np.linalg.norm(right) / right.size**0.5 * draw.standard_normal(right.shape)
    verdict = judge_answers(pack, Answers(features, "noise"), "float16")
    assert not verdict.passed and "only photos are wrong" not in verdict.diagnosis


class OtherActivation(Port):
    """A port with the GELU through a sigmoid, which is as far off as bfloat16 and no rounding."""

    def gelu(self, x: Any) -> Any:
        return x / (1 + np.exp(-1.702 * x))


class LargerEps(Port):
    """A port whose norms have an eps of 1e-3."""

    def norm(self, x: Any, name: str) -> Any:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-3)
        return scaled * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]


@pytest.mark.parametrize("kind", [OtherActivation, LargerEps])
def test_a_fault_as_large_as_rounding_is_not_taken_for_it(
    pack: Pack, weights: dict[str, Any], kind: type[Port]
) -> None:
    port = kind(weights)
    verdict = judge_answers(
        pack, Answers({case: port(*pack.inputs(case).values())[0] for case in pack.cases}, "a port")
    )
    assert not verdict.passed and not verdict.fault and "none of the" in verdict.diagnosis


@pytest.mark.full
def test_a_full_pack_has_the_same_bytes_twice_and_a_right_port_passes(weights: dict[str, Any], tmp_path: Path) -> None:
    for name in ("one", "other"):
        write_pack(tiny.siglip(), tmp_path / name)
    one, other = (
        {path.relative_to(tmp_path / name).as_posix(): path.read_bytes() for path in files_of(tmp_path / name)}
        for name in ("one", "other")
    )
    assert one == other and len(one) > 300
    verdict = judge_answers(full := Pack.open(tmp_path / "one"), ported(full, weights))
    assert verdict.passed and not verdict.diagnosis and {"row", "column", "drowned", "batch"} < set(full.cases)


def files_of(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def test_the_command_line_judges_a_folder_and_a_file(pack: Pack, weights: dict[str, Any], tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    right, wrong = written(pack, weights, tmp_path / "right"), written(pack, weights, tmp_path / "wrong", "bgr")
    assert run("judge", pack.path, right)[0] == 0
    page, data = tmp_path / "new" / "r.html", tmp_path / "new" / "in" / "r.json"
    code, said = run("judge", pack.path, wrong, "--report", page, "--report", data)
    assert code == 1 and "diagnosis: bgr: channels are read as blue, green, red" in said
    assert "first deviation: embeds of stages" in said
    html = page.read_text(encoding="utf-8")
    assert "Bgr: channels are read as blue" in html and "<script" not in html
    assert json.loads(data.read_text())["fault"] == "bgr"
    told = CliRunner().invoke(gate_command, ["judge", str(pack.path), str(wrong), "--json"])
    assert told.exit_code == 1 and told.stdout == data.read_text() and "FAIL" in told.stderr
    save_file(
        {case: value.astype(np.float32) for case, value in ported(pack, weights).features.items()},
        tmp_path / "a.safetensors",
    )
    assert run("judge", pack.path, tmp_path / "a.safetensors")[0] == 0
    assert run("judge", pack.path)[0] == 2
    for name in ("r.md", "a.safetensors/r.json"):  # no format of a verdict, and beneath a file
        code, said = run("judge", tmp_path / "no-pack", right, "--report", tmp_path / name)
        assert code == 2 and name in said
    assert run("judge", pack.path, right, "--url", "http://x")[0] == 2
    with pytest.raises(nx.RequestError, match="expected arrays named after cases, such as photos"):
        np.save(tmp_path / "odd.npy", np.zeros(1))
        (tmp_path / "odd").mkdir()
        np.save(tmp_path / "odd" / "x.npy", np.zeros(1))
        from_files(pack, tmp_path / "odd")


def test_a_command_answers_photos(pack: Pack, tmp_path: Path) -> None:
    photos = [(photo.name, row, case) for case in pack.photo_cases for row, photo in enumerate(pack.photos(case))]
    vectors = {name: pack.expected(case)[row].tolist() for name, row, case in photos}
    (tmp_path / "vectors.json").write_text(json.dumps(vectors))
    script = "import json,sys,pathlib;v=json.load(open(sys.argv[1]));print(*v[pathlib.Path(sys.argv[2]).name])"
    (tmp_path / "port.py").write_text(script)
    command = f"{sys.executable} {tmp_path / 'port.py'} {tmp_path / 'vectors.json'} {{photo}}"
    code, said = run("judge", pack.path, "--command", command)
    assert code == 0 and "not answered: stages, mixed, square, large" in said
    assert "the same photo again: moved 0.0e+00" in said
    code, said = run("judge", pack.path, "--command", f"{sys.executable} -c 'raise SystemExit(3)' {{photo}}")
    assert code == 1 and "it exited with 3" in said
    assert run("judge", pack.path, "--command", "port")[0] == 2


def test_vectors_are_read_as_ports_print_them() -> None:
    for text in ("1 2.5 -3", "1,2.5,-3\n", "[1, 2.5, -3]", "[[1, 2.5, -3]]", '{"embedding": [1, 2.5, -3]}'):
        assert vector_in(text).tolist() == [1, 2.5, -3]
    for text in ("", "hello", "[[1], [2]]", "{}"):
        with pytest.raises(ValueError):
            vector_in(text)
    swapped = '{"data": [{"index": 1, "embedding": [3, 4]}, {"index": 0, "embedding": [1, 2]}]}'
    assert vectors_in(swapped).tolist() == [[1, 2], [3, 4]] == vectors_in('{"vectors": [[1, 2], [3, 4]]}').tolist()


def test_transformers_own_models_have_packs(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    model = tiny.siglip2()
    manifest = write_pack(model, tmp_path / "pack", small=True)
    assert {"no-antialias", "exif-ignored", "other-resizer"} <= set(manifest["fingerprints"])
    verdict = judge_answers(Pack.open(tmp_path / "pack"), answered(Pack.open(tmp_path / "pack"), nx.vectorize(model)))
    assert verdict.passed and not verdict.diagnosis
    assert manifest["inputs"] == ["pixel_values", "pixel_attention_mask", "spatial_shapes"]
    assert {"no-antialias", "axes-swapped", "bgr", "mask-dropped"} <= set(manifest["fingerprints"])


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_command_line_writes_a_pack(tmp_path: Path) -> None:
    arguments = ["--model-args", "embed_dim=32", "depth=2", "num_heads=2", "patch_size=4"]
    code, said = run(
        "pack", "naflexvit_base_patch16_siglip", "--out", tmp_path / "p", "--weights", "random", "--small", *arguments
    )
    assert code == 0 and "written" in said, said
    assert Pack.open(tmp_path / "p").manifest["model"]["name"] == "naflexvit_base_patch16_siglip"
    code, said = run("--help")
    assert code == 0 and "pack ..." in said and "judge ..." in said
