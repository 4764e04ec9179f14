"""An artifact of several patch sizes: an entry point for each, judged against eager fed with 5-D patches."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from artifacts import edit
from click.testing import CliRunner, Result

import naflex_export as nx
from naflex_export.batch import Batch, noise_batch
from naflex_export.cli.export import export_command
from naflex_export.cli.gate import gate_command
from naflex_export.graph.trace import trace
from naflex_export.grid import Grid, check_patch_sizes, parse_patch_sizes
from naflex_export.models import adapter_of
from naflex_export.models.model_sources import ModelSource
from naflex_export.precision import Precision
from naflex_export.serving.manifest import Manifest

BUCKETS = [nx.Bucket(16, (1, 2, 4))]
SIZES = (3, 4, 6)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> nx.Artifact:
    out = tmp_path_factory.mktemp("sizes") / "a"
    return nx.export(tiny.flexible(), "onnx", out, BUCKETS, patch_sizes=(6, 3, 4))


def batch_of(size: int) -> Batch:
    return noise_batch("sizes", [Grid(2, 5), Grid(4, 4)], 16, size * size * 3)


def share(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def test_each_size_is_a_whole_artifact(artifact: nx.Artifact) -> None:
    assert list(artifact.by_patch_size) == list(SIZES)
    folders = sorted(path.name for path in artifact.path.iterdir())
    assert folders == ["README.md", "gate", "manifest.json", "patch3", "patch4", "patch6"]
    for size in SIZES:
        fields = json.loads((artifact.path / f"patch{size}" / "manifest.json").read_text())
        assert (fields["kind"], fields["schema"]) == ("encoder", 4)
        assert fields["gate"]["passed"] is True and fields["gate"]["cases"] == 10
        assert fields["inputs"][0]["shape"] == ["batch", "tokens", size * size * 3]
        assert fields["preprocessing"]["patch_size"] == [size, size]
        assert fields["model"]["patch_size"] == size
        assert nx.load(artifact.path / f"patch{size}").manifest.inputs[0].shape[2] == size * size * 3


def test_all_sizes_are_closed_together(artifact: nx.Artifact) -> None:
    with nx.load(artifact.path, device="cpu") as run:
        one = run[3]
    for asks in (lambda: run[3], run.trim, run.warmup, one.warmup):
        with pytest.raises(nx.ClosedError, match="was closed: load the artifact again"):
            asks()


def test_the_manifest_on_top_says_what_they_have_in_common(artifact: nx.Artifact) -> None:
    fields = json.loads((artifact.path / "manifest.json").read_text())
    assert (fields["kind"], fields["schema"]) == ("patch sizes", 4)
    assert fields["build"] == {"entry_points": {"3": "patch3", "4": "patch4", "6": "patch6"}}
    assert fields["inputs"][0]["shape"] == ["batch", "tokens", "values"]
    assert fields["preprocessing"]["patch_size"] == [[3, 3], [4, 4], [6, 6]]
    assert fields["gate"]["passed"] is True and fields["gate"]["cases"] == 30
    assert {"patch3/model.onnx", "patch6/manifest.json", "gate/report.json"} <= set(fields["files"])
    report = json.loads((artifact.path / "gate" / "report.json").read_text())
    cases = [result["case"] for result in report["results"]]
    assert {"patch3/photos-16-0", "patch6/mixed-16-seed0"} <= set(cases)


def test_one_of_an_older_release_is_read_as_what_it_is(artifact: nx.Artifact, tmp_path: Path) -> None:
    """Before manifests had a kind, the schema said it: 2 of a folder with several sizes."""
    fields = json.loads((artifact.path / "manifest.json").read_text())
    del fields["kind"]
    (tmp_path / "manifest.json").write_text(json.dumps({**fields, "schema": 2}))
    assert Manifest.read(tmp_path) == artifact.manifest


@pytest.mark.full
def test_an_artifact_of_one_size_is_as_it_was(tmp_path: Path) -> None:
    one = nx.export(tiny.flexible(), "onnx", tmp_path / "a", BUCKETS)
    fields = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert (fields["kind"], fields["schema"]) == ("encoder", 4)
    assert "patch_size" not in fields["model"] and not one.by_patch_size
    assert list(fields) == [
        "target", "dtype", "inputs", "outputs", "buckets", "model", "preprocessing", "versions", "build", "gate",
        "files", "kind", "schema", "sha256",
    ]  # fmt: skip


def test_a_runner_picks_by_the_width_of_the_patches(artifact: nx.Artifact) -> None:
    eager = tiny.flexible()
    run = nx.load(artifact.path)
    assert isinstance(run, nx.PatchSizesRunner)
    for size in SIZES:
        batch = batch_of(size)
        rest = (batch.patch_coord, batch.patch_valid)
        found = run(batch.patches, *rest)
        with torch.no_grad():
            expected = eager(batch.patches.unflatten(2, (size, size, 3)), *rest)
        assert share(found, expected) <= 1e-5
        assert torch.equal(run[size](batch.patches, *rest), found)


def test_a_runner_of_several_sizes_does_what_one_of_one_does(artifact: nx.Artifact) -> None:
    run = nx.load(artifact.path)
    assert "  patch sizes: 3, 4, 6 (run[3] is one)" in repr(run).splitlines()
    assert run(*run.example("example", 2, 16)).shape == (2, 32)
    patches, coord, valid = run.example("example", 2, 16)
    with pytest.raises(nx.InputError, match="patch_coord of image 0 does not go row by row"):
        run(patches, coord.flip(1), valid)
    run.check_inputs = False
    assert run(patches, coord.flip(1), valid).shape == (2, 32)


def test_what_no_entry_point_takes_is_refused(artifact: nx.Artifact) -> None:
    run = nx.load(artifact.path)
    batch = batch_of(5)
    with pytest.raises(
        nx.InputError, match="patches have 75 values each: expected 27, 48, 108, for patch sizes 3, 4, 6"
    ):
        run(batch.patches, batch.patch_coord, batch.patch_valid)
    with pytest.raises(nx.InputError, match="got 0 inputs: expected 3"):
        run()
    with pytest.raises(nx.RequestError, match="patch size 5 is not in this artifact: expected one of 3, 4, 6; export"):
        run[5]


def test_the_gate_judges_every_size_again(artifact: nx.Artifact) -> None:
    run = nx.load(artifact.path)
    report = nx.gate(run, tiny.flexible())
    assert report.passed and len(report.results) == 30
    assert len(nx.gate(run[6], tiny.flexible()).results) == 10


def test_the_gate_takes_buckets_and_a_dtype_for_every_size(artifact: nx.Artifact) -> None:
    run = nx.load(artifact.path)
    smaller = nx.gate(run, tiny.flexible(), buckets=[nx.Bucket(9, (1, 2, 4))])
    assert smaller.passed and {result.bucket for result in smaller.results} == {"9:1,2,4"}
    with pytest.raises(nx.RequestError, match="dtype 'float4' is not supported"):
        nx.gate(run, tiny.flexible(), dtype="float4")


@pytest.mark.parametrize("last", [True, False], ids=["channels-last", "channels-first"])
@pytest.mark.parametrize("size", [2, 6])
def test_a_folded_weight_equals_timms_own_resampling(size: int, last: bool) -> None:
    """It is given the patches as images of their own, in the order of axes that its model has."""
    eager, batch = tiny.naflexvit(enable_patch_interpolator=True, depth=1, patchify_channels_last=last), batch_of(size)
    rest = (batch.patch_coord, batch.patch_valid)
    folded = adapter_of(eager, size).vectorized().model
    with torch.no_grad():
        expected = eager(batch.patches.unflatten(2, (size, size, 3) if last else (3, size, size)), *rest)
        assert share(folded(batch.patches, *rest), expected) <= 1e-5


@pytest.mark.parametrize(
    ("outputs", "options"),
    [(("features",), {}), (("features", "tokens"), {"patchify_channels_last": False})],
    ids=["features-channels-last", "tokens-too-channels-first"],
)
def test_a_folded_graph_is_an_ordinary_one(outputs: tuple[str, ...], options: dict[str, object]) -> None:
    model = tiny.naflexvit(enable_patch_interpolator=True, depth=1, **options)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    program = trace(adapter_of(model, 6), BUCKETS, outputs=outputs)
    ordinary = trace(adapter_of(tiny.naflexvit(patch_size=6, depth=1)), BUCKETS, outputs=outputs)
    assert [node.target for node in program.exported.graph.nodes if node.op == "call_function"] == [
        node.target for node in ordinary.exported.graph.nodes if node.op == "call_function"
    ]
    assert model.embeds.patch_size == (4, 4) and model.embeds.proj.weight.shape == (32, 48)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_weights_are_resampled_in_float32_before_they_are_cast() -> None:
    adapter = adapter_of(tiny.flexible(), 6)
    program = trace(adapter, BUCKETS, Precision("float16"))
    single = adapter.vectorized().model.embeds.proj.weight
    assert single.dtype is torch.float32
    assert torch.equal(program.exported.state_dict["model.embeds.proj.weight"], single.half())


def test_a_wrong_fold_fails_the_gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel resized as an image, not by the pseudo-inverse: nothing is published, and the report says which size."""

    def resized(weight: torch.Tensor, base: tuple[int, int], target: tuple[int, int], *_: object, **__: object):
        kernel = weight.unflatten(1, (*base, 3)).permute(0, 3, 1, 2)
        kernel = torch.nn.functional.interpolate(kernel, target, mode="bicubic", antialias=True)
        return kernel.permute(0, 2, 3, 1).flatten(1)

    monkeypatch.setattr("naflex_export.models.timm_patch_size.resample_weight", resized)
    with pytest.raises(nx.GateFailure, match=r"patch6/mixed-16-seed0 \[features\]: max_share"):
        nx.export(tiny.flexible(), "onnx", tmp_path / "a", BUCKETS, patch_sizes=(6,))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.rejected.html", "a.rejected.json"]


def test_damage_inside_an_entry_point_is_refused(artifact: nx.Artifact, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(artifact.path, tmp_path / "a"))
    (copied / "patch6" / "model.onnx").write_bytes(b"short")
    with pytest.raises(nx.ArtifactError, match=r"'patch6/model\.onnx' has 5 bytes, the manifest says"):
        nx.load(copied)
    fields = json.loads((copied / "manifest.json").read_text())
    fields["build"]["entry_points"]["6"] = "../elsewhere"
    (copied / "manifest.json").write_text(json.dumps(fields))
    with pytest.raises(nx.ArtifactError, match="is damaged"):
        nx.load(copied)


def test_swapped_sizes_are_refused(artifact: nx.Artifact, tmp_path: Path) -> None:
    """All hashes are right: what refuses them is what each says of itself."""
    copied = Path(shutil.copytree(artifact.path, tmp_path / "a"))
    edit(copied, lambda fields: fields["build"].update(entry_points={"3": "patch4", "4": "patch3", "6": "patch6"}))
    with pytest.raises(
        nx.ArtifactError, match="patch4' is damaged: it holds patch size 4, .* entry point of patch size 3"
    ):
        nx.load(copied)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("8,,16", "patch sizes '8,,16' are malformed: expected numbers of pixels, such as 8,16,32"),
        ("8x8", "patch sizes '8x8' are malformed"),
        ("", "patch sizes '' are malformed"),
        ("8,0", "patch size 0: expected an integer of at least 1, in pixels"),
        ("-8", "patch size -8: expected an integer of at least 1"),
        ("8,16,8", "patch size 8 was given 2 times: give each size once"),
    ],
)
def test_wrong_sizes_are_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(nx.RequestError, match=message):
        parse_patch_sizes(text)
    refused = cli("tiny:flexible", "--target", "onnx", "--patch-size", text, "--out", tmp_path / "a")
    assert refused.exit_code == 2 and message in " ".join(refused.stderr.split())
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("sizes", [[], [8.0], [True], ["8"]], ids=str)
def test_sizes_that_are_none_are_refused(sizes: list[object]) -> None:
    with pytest.raises(nx.RequestError, match="no patch size was given|expected an integer of at least 1"):
        check_patch_sizes(sizes)  # type: ignore[arg-type]


def test_a_size_that_is_none_is_refused_by_the_gate_too() -> None:
    with pytest.raises(nx.RequestError, match="patch size 0: expected an integer of at least 1, in pixels"):
        nx.gate(lambda *inputs: inputs[0], tiny.flexible(), patch_size=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {},
            "patch size 8 .* no patch interpolator; make it with timm.create_model(..., enable_patch_interpolator=True",
        ),
        (
            {"enable_patch_interpolator": True, "embed_proj_type": "conv"},
            "patch size 8 .* resamples a linear projection only.* expected embed_proj_type='linear'",
        ),
    ],
    ids=["no-interpolator", "conv"],
)
def test_models_that_cannot_are_refused_by_name(options: dict[str, object], message: str, tmp_path: Path) -> None:
    import re

    pattern = ".*".join(re.escape(part) for part in message.split(".*"))
    with pytest.raises(nx.UnsupportedModelError, match=pattern):
        nx.export(tiny.naflexvit(**options), "compile", tmp_path / "a", BUCKETS, patch_sizes=[8])
    assert not any(tmp_path.iterdir())


def cli(*arguments: object) -> Result:
    wide = {"COLUMNS": "120"}  # so that no case's name is broken across lines
    return CliRunner().invoke(export_command, [str(argument) for argument in arguments], env=wide)


@pytest.mark.full
def test_the_command_line_makes_and_judges_them(tmp_path: Path) -> None:
    out = tmp_path / "a"
    done = cli(
        "tiny:flexible", "--target", "onnx", "--weights", "random", "--bucket", "16:1,2,4",
        "--patch-size", "8, 4", "--out", out,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "patch4/photos-0" in done.stdout and "patch8/mixed" in done.stdout
    assert "in patches: float32 [batch, tokens, values]" in " ".join(done.stdout.split())
    assert "patch8/model.onnx" in done.stdout and "patch8/gate" not in done.stdout
    for folder in (out, out / "patch8"):
        again = CliRunner().invoke(gate_command, [str(folder), "--seed", "3", "--trust-source"])
        assert again.exit_code == 0, again.output


def test_a_factory_without_interpolator_is_refused(tmp_path: Path) -> None:
    refused = cli(
        "tiny:siglip", "--target", "onnx", "--weights", "random", "--patch-size", "8", "--out", tmp_path / "a"
    )
    assert refused.exit_code == 2 and "enable_patch_interpolator=True" in refused.stderr


@pytest.mark.parametrize("name", ["naflexvit_base_patch16_siglip", "vit_tiny_patch16_224"])
def test_a_timm_name_is_made_with_an_interpolator(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    true = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda name, **kw: true(name, **{**kw, "depth": 1, "embed_dim": 64, "num_heads": 2})
    )
    source = ModelSource(name, "random", patch_interpolator=True)
    assert source.load().embeds.supports_patch_interpolation
    assert source.describe()["patch_interpolator"] is True
    assert "patch_interpolator" not in ModelSource(name, "random").describe()
