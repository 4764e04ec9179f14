"""`ExportRequest`: all that an export is asked for, and what can be checked of it without the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from naflex_export.accuracy.efforts import STANDARD, CaseSelection
from naflex_export.accuracy.photos import LEAST, check_folder
from naflex_export.errors import RequestError
from naflex_export.graph.build_settings import BuildSettings
from naflex_export.grid import Bucket, check_buckets, check_patch_sizes
from naflex_export.models.output_names import check_outputs_of_some
from naflex_export.models.preprocessing import settings_of
from naflex_export.models.tower_names import IMAGE, check_towers
from naflex_export.precision import FLOAT32, Precision
from naflex_export.serving.publish import check_destination, check_writable, named
from naflex_export.targets import OPSETS, check_target, target_word


@dataclass(frozen=True)
class ExportRequest:
    """What is to be exported, and how: all that `export` takes besides the model.

    Attributes:
        target: "compile", "aot", "onnx" or "trt".
        out: the artifact's folder. An artifact there is replaced, atomically; anything else is left alone.
        buckets: what the artifact serves; one of 256 tokens by default.
        precision: of the weights and of floating inputs and outputs.
        outputs: "features" (pooled, through the head), "tokens" (the encoder's), or both; by default the features, or
            the tokens of a model that pools nothing.
        matrices: "stored" or "computed": where a graph has the resampling matrices of a learned grid from; by default
            stored where they take at most 3 % of the weights.
        patch_sizes: make an entry point for each of these patch sizes, in pixels: an artifact of its own in the folder
            `patch<size>`, with the patch projection resampled and folded into its weight. The model must have been made
            with `enable_patch_interpolator=True`. By default one artifact for the model's own size.
        towers: ("image",), or ("image", "text") to export the text tower that the image tower was trained with too, in
            the artifact's folder `text`; as one text, "image,text".
        tokenizer: the folder of the text tower's tokenizer; by default where the model was loaded from.
        preprocessing: how photos are prepared, where the model does not say it, or its processor cannot be had:
            settings by name, the path of a JSON file or of a folder that holds one, or an image processor of
            transformers. timm's settings are mean, std and interpolation.
        upscale: enlarge photos of fewer patches than the budget, as timm and transformers do. With False a small photo
            keeps its size and has few tokens, in the manifest and so in all that prepares photos by it; its vector is
            not the library's own.
        packed: take the images of a batch one after the other, as `nx.pack` gives them, with no padding between them.
        images: a folder of photos to judge on; by default the three that ship with the package.
        seed: of the generated batches to judge on.
        effort: "quick", "standard" or "thorough": how many cases to judge on.
        require_run: refuse an artifact that this machine can build and not run.
        keep_rejected: keep an artifact that the gate rejects, as `<out>.rejected`, so that it can be judged again and
            looked into. It is not for use.
        source: where the model came from, for the manifest, so that `naflex-gate` can load it again.
        settings: what the build takes besides the program.

    Raises:
        RequestError: a value is not possible.
    """

    target: str
    out: Path
    buckets: tuple[Bucket, ...] = (Bucket(),)
    precision: Precision = FLOAT32
    outputs: tuple[str, ...] | None = None
    matrices: str | None = None
    patch_sizes: tuple[int, ...] | None = None
    towers: tuple[str, ...] = IMAGE
    tokenizer: str | None = None
    preprocessing: Mapping[str, Any] | None = None
    upscale: bool = True
    packed: bool = False
    images: Path | None = None
    seed: int = 0
    effort: str = STANDARD
    require_run: bool = False
    keep_rejected: bool = False
    source: dict[str, Any] = field(default_factory=dict)
    settings: BuildSettings = field(default_factory=BuildSettings)

    def __post_init__(self) -> None:
        object.__setattr__(self, "target", target_word(self.target))
        check_target(self.target)
        object.__setattr__(self, "precision", self.precision.for_target(self.target))
        object.__setattr__(self, "out", named(self.out))
        object.__setattr__(self, "buckets", check_buckets(self.buckets))
        if self.patch_sizes is not None:
            object.__setattr__(self, "patch_sizes", check_patch_sizes(self.patch_sizes))
        if self.outputs is not None:
            check_outputs_of_some(self.outputs)
        if not isinstance(self.upscale, bool):
            raise RequestError(f"upscale={self.upscale!r}: expected True or False")
        object.__setattr__(self, "towers", check_towers(self.towers))
        if self.tokenizer is not None:
            object.__setattr__(self, "tokenizer", str(self.tokenizer))
        if self.tokenizer is not None and self.towers == IMAGE:
            raise RequestError(
                f"--tokenizer {self.tokenizer!r} was given and no text tower is exported: give --tower image,text too"
            )
        if self.patch_sizes is not None and self.towers != IMAGE:
            raise RequestError(
                f"towers={','.join(self.towers)} and patch_sizes={self.patch_sizes} were both given: a text tower goes "
                "beside an image tower of one patch size"
            )
        if self.precision.quantized and self.towers != IMAGE:
            raise RequestError(
                f"towers={','.join(self.towers)} and dtype {self.precision.name} were both given: a text tower is not "
                "quantized by this release; export the image tower alone, or in float16"
            )
        if self.preprocessing is not None:
            object.__setattr__(self, "preprocessing", settings_of(self.preprocessing))
        CaseSelection(self.seed, self.effort)

    @property
    def rejected(self) -> Path:
        """Where an artifact is kept that the gate rejects, and what its report is named after."""
        return self.out.with_name(f"{self.out.name}.rejected")

    @property
    def cases(self) -> CaseSelection:
        """The batches to judge on."""
        return CaseSelection(self.seed, self.effort)


def check_request(request: ExportRequest) -> None:
    """Check what can be told of a request without its model.

    Raises:
        RequestError: parts of it do not go together, or its destination is taken.
    """
    check_destination(request.out)
    check_writable(request.out)
    if request.settings.compile_cache and request.target != "compile":
        raise RequestError(
            f"target {request.target!r} has no compile cache: nothing of it is compiled where it is loaded; leave "
            "--compile-cache out"
        )
    check_opset(request)
    if request.packed:
        refuse_quantized(request.precision, packed=True)
    if request.keep_rejected:
        if request.patch_sizes is not None:
            raise RequestError(
                f"keep_rejected and patch_sizes={request.patch_sizes} were both given: an artifact is kept of one "
                "patch size; export that size alone"
            )
        check_destination(request.rejected)


def check_images(request: ExportRequest) -> None:
    """Check that the photos of a request are there, and that it has some where layers are calibrated on them.

    Where the model is at hand, what it cannot be asked for is said first.

    Raises:
        RequestError: they are not.
    """
    if request.precision.quantized and request.images is None:
        raise RequestError(
            f"dtype {request.precision.quantized!r} is calibrated on photos of yours, and none were given: expected a "
            f"folder of {LEAST} or more, like those that will be served, as images, on the command line --images"
        )
    if request.images is not None:
        check_folder(request.images)


def check_opset(request: ExportRequest) -> None:
    """Check that the opset asked for, if one is, can be had for the target.

    Raises:
        RequestError: it cannot; the message says which can.
    """
    opset, known = request.settings.opset, OPSETS.get(request.target, range(0))
    if opset is None or opset in known:
        return
    if not known:
        raise RequestError(
            f"--opset {opset} was asked for of target {request.target!r}, which is not made of an ONNX graph: leave it "
            "out, or take target onnx or trt"
        )
    raise RequestError(
        f"--opset {opset} cannot be had for target {request.target!r}: expected {known[0]} to {known[-1]}; without "
        "--opset the fastest of them is taken"
    )


def refuse_quantized(precision: Precision, *, packed: bool) -> None:
    """Check that an export of packed inputs quantizes nothing.

    Args:
        precision: that the export is asked for.
        packed: packs were asked for; without, the model takes nothing else.

    Raises:
        RequestError: it is asked to.
    """
    if precision.quantized:
        why = "packed inputs were asked for" if packed else "the model is a vision tower, which takes packs only"
        instead = ", or padded inputs, without packed=True (on the command line --packed)" if packed else ""
        raise RequestError(
            f"dtype {precision.quantized!r} is for padded exports, whose layers are calibrated on photos, and {why}: "
            f"ask for float16 or bfloat16{instead}"
        )
