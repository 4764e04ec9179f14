"""How fast techniques run one encoder: on the same batches, in the same rounds, the error of each beside its time.

A *technique* is a way to run the model: eager, compiled, an artifact. Every round has a batch of its own, for grids
change from call to call where a model is used, and what depends on them (a loop, a graph for each grid) must pay.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from naflex_export.accuracy.metrics import measure as compare
from naflex_export.accuracy.reference import SoundInterpolate
from naflex_export.batch import Batch
from naflex_export.bench.results_csv import mib, text
from naflex_export.bench.timing import Timing, interleave, peak_memory
from naflex_export.bench.workloads import workload
from naflex_export.compiled import compile as compile_ours
from naflex_export.errors import NaflexExportError, RequestError
from naflex_export.models import adapter_of, packed_of
from naflex_export.models.adapter import ModelAdapter
from naflex_export.models.mixed_precision import cast_model, keeping_softmax
from naflex_export.precision import Kept, Precision
from naflex_export.serving.packing import pack
from naflex_export.serving.runner import Runner

COLUMNS = (
    *("batch", "tokens", "technique", "ms", "spread", "images_per_s", "speedup", "peak_mib"),
    *("embed_share", "position_share", "error", "failure"),
)
"""Of a row of `Figures`; shares and errors are of 1."""

Inputs = tuple[Tensor, ...]
Module = Callable[..., Any]

WARMUP = 2
"""Rounds before those that count: a compiler that specializes on one batch generalizes on the next."""

SETTLE = 0.1
"""Seconds between calls on a CPU: torch and ONNX Runtime have worker threads of their own, which spin after a call.

On a GPU the host's cores are not what calls compete for, and the pauses would add up.
"""


@dataclass(frozen=True)
class Technique:
    """A way to run an encoder.

    Attributes:
        name: what tables call it.
        run: takes the three inputs and returns the features.
        embedding: by the same technique, all ahead of the first block; None where that cannot be run by itself.
        bare: the same without a position embedding.
        foreign: memory is allocated by another library than torch.
        trim: gives back memory kept between calls.
        arrange: makes of a padded batch what `run` takes, ahead of the clock: a loader would have made it.
    """

    name: str
    run: Module
    embedding: Module | None = None
    bare: Module | None = None
    foreign: bool = False
    trim: Callable[[], None] = lambda: None
    arrange: Callable[..., Inputs] = lambda *inputs: inputs


@dataclass(frozen=True)
class Figures:
    """What was measured of one technique; None for what was not.

    Attributes:
        technique: its name.
        images, tokens: of each batch.
        timing: of a call.
        speedup: how many times as fast as the first technique it is.
        peak_bytes: the most memory a call held beyond weights and inputs, its output included.
        error: relative L2 distance of its features from those of eager in float32.
        embed_share: time of the embedding run by itself, patch projection included, as a share of the call's.
        position_share: the same less the time of an embedding without positions: what they add.
        failure: why the technique could not be run; empty where it was.
    """

    technique: str
    images: int
    tokens: int
    timing: Timing | None = None
    speedup: float | None = None
    peak_bytes: int | None = None
    error: float | None = None
    embed_share: float | None = None
    position_share: float | None = None
    failure: str = ""

    @property
    def images_per_second(self) -> float | None:
        """Images of a batch over the median time."""
        return None if self.timing is None else 1000 * self.images / self.timing.ms

    def row(self) -> dict[str, str]:
        """Return the figures as the columns `COLUMNS` of a CSV file, empty where there is none."""
        timing = self.timing
        return {
            "batch": str(self.images),
            "tokens": str(self.tokens),
            "technique": self.technique,
            "ms": "" if timing is None else text(timing.ms, 2),
            "spread": "" if timing is None else text(timing.spread, 3),
            "images_per_s": text(self.images_per_second, 2),
            "speedup": text(self.speedup, 3),
            "peak_mib": mib(self.peak_bytes),
            "embed_share": text(self.embed_share, 4),
            "position_share": text(self.position_share, 4),
            "error": "" if self.error is None else f"{self.error:.1e}",
            "failure": self.failure,
        }


class Bench:
    """One model, in one precision on one device, and what it is measured on.

    Args:
        model: the untouched eager model.
        precision: what everything runs in; of layers that are quantized, eager has none.
        device: where everything runs.
        patch_size: of the patches, where it is not the model's own.

    Attributes:
        model: the untouched eager model, a copy in the precision and on the device.
        adapter: that model's.
        device, dtype: where and in what everything runs.
    """

    def __init__(
        self, model: nn.Module, precision: Precision, device: torch.device, patch_size: int | None = None
    ) -> None:
        adapter: ModelAdapter = adapter_of(model, patch_size)
        if not adapter.input_format.masks:
            raise RequestError(
                f"the model is a vision tower ({adapter.name}), which takes packs only, and what is timed here are "
                "padded batches: call the artifact's Runner on packs of your own, and time that"
            )
        self.device, self.dtype = device, precision.torch_dtype
        self._reference = adapter.of(copy.deepcopy(model).to(device, torch.float32).eval())
        self.model = self._reference.model
        if precision.dtype != "float32":
            self.model = copy.deepcopy(self.model)
        self.adapter = adapter.of(self.model)
        self._kept = cast_model(self.adapter, precision)

    def eager(self, name: str = "eager") -> Technique:
        """Return the untouched model, in the precision: what is kept in float32 is so here too."""
        return Technique(name, *self._parts(self.adapter, lambda module: module))

    def eager_compiled(self, name: str = "eager, torch.compile") -> Technique:
        """Return the untouched model under `torch.compile` with its defaults: as many graphs as it takes."""
        return Technique(name, *self._parts(self.adapter, torch.compile))

    def ours_compiled(self, name: str = "ours, torch.compile", **options: Any) -> Technique:
        """Return `nx.compile` of the model; options are those of `torch.compile`."""
        _, embedding, bare = self._parts(
            self.adapter.vectorized(), lambda module: torch.compile(module, fullgraph=True, dynamic=True, **options)
        )
        compiled = compile_ours(self.model, **options)
        return Technique(name, lambda *inputs: _features(self.adapter.unpack(compiled(*inputs))), embedding, bare)

    def ours_packed(self, name: str = "ours packed, torch.compile", **options: Any) -> Technique:
        """Return `nx.compile` of the model on packs, made ahead of the clock; options are those of `torch.compile`."""
        adapter, compiled = packed_of(self.adapter), compile_ours(self.model, packed=True, **options)

        def run(*inputs: Tensor) -> Tensor:
            return _features(adapter.unpack(compiled(dict(zip(adapter.input_format.names, inputs, strict=True)))))

        return Technique(name, run, arrange=self._packed_inputs)

    def runner(self, runner: Runner, name: str) -> Technique:
        """Return an artifact. Its checks of values are left out: they would wait for the device."""
        foreign = runner.manifest.target in ("onnx", "trt")

        def run(*inputs: Tensor) -> Tensor:
            return dict(zip(runner.output_names, runner.execute(inputs), strict=True))["features"]

        if runner.manifest.packed:
            return Technique(name, run, foreign=foreign, trim=runner.trim, arrange=self._packed_inputs)
        return Technique(name, run, foreign=foreign, trim=runner.trim)

    def batches(self, rule: str, images: int, tokens: int, seed: int, num_batches: int) -> list[Batch]:
        """Return batches as `workload` draws them, each with grids of its own, for this model's patches.

        Args:
            rule: of the grids, as for `workload`.
            images: of each batch.
            tokens: that each image is padded to.
            seed: of the grids and the values.
            num_batches: how many batches.
        """
        width = self.adapter.token_width
        return [workload(rule, images, tokens, width, f"{seed} {number}") for number in range(num_batches)]

    def measure(
        self,
        techniques: Sequence[Technique],
        batches: Sequence[Batch],
        rounds: int,
        announce: Callable[[str], None] = lambda step: None,
    ) -> list[Figures]:
        """Return the figures of each technique, in their order; the first is what the others' speed is a ratio to.

        A technique that raises is not timed, and its figures say why.

        Args:
            techniques: to be run.
            batches: of the same images and tokens; a round takes the next, and the first again after the last.
            rounds: that count.
            announce: called with a line for each step that takes time.
        """
        arranged = [self._arrange(batch, self.dtype) for batch in batches]
        with torch.inference_mode(), SoundInterpolate():
            encoder = self._reference.encoder(("features",))
            expected = _features(encoder(*self._arrange(batches[0], torch.float32)))
        images, tokens = arranged[0][0].shape[:2]
        calls: dict[str, tuple[Module, Technique]] = {}
        tried: list[Figures] = []
        with torch.inference_mode():
            for technique in techniques:
                announce(f"{technique.name}: first run")
                try:
                    error, peak, parts = self._try(technique, arranged[0], expected)
                except Exception as failure:  # whatever a compiler or a runtime raises, the others can be measured
                    tried.append(Figures(technique.name, images, tokens, failure=first_line(failure)))
                    continue
                tried.append(Figures(technique.name, images, tokens, peak_bytes=peak, error=error))
                calls[technique.name] = technique.run, technique
                calls |= {f"{technique.name}: {part}": (module, technique) for part, module in parts.items()}
            timings = self._time(calls, arranged, rounds, announce) if calls else {}
        return [_figures(found, timings, techniques[0].name) for found in tried]

    def _try(
        self, technique: Technique, inputs: Inputs, expected: Tensor
    ) -> tuple[float, int | None, dict[str, Module]]:
        """Run a technique for the first time: return its error, its memory, and its parts that can be run."""
        inputs = technique.arrange(*inputs)
        error = compare(technique.run(*inputs), expected).relative_l2
        technique.trim()
        peak = peak_memory(lambda: technique.run(*inputs), self.device, foreign=technique.foreign)
        parts = {"embedding": technique.embedding, "bare": technique.bare}
        given = {part: module for part, module in parts.items() if module is not None}
        for module in given.values():
            module(*inputs)
        return error, peak, given

    def _time(
        self,
        calls: dict[str, tuple[Module, Technique]],
        batches: Sequence[Inputs],
        rounds: int,
        announce: Callable[[str], None],
    ) -> dict[str, Timing]:
        techniques = {technique.name: technique for _, technique in calls.values()}
        current: dict[str, Inputs] = {}

        def next_batch(number: int) -> None:
            batch = batches[number % len(batches)]
            current.update({name: technique.arrange(*batch) for name, technique in techniques.items()})

        def on_current(module: Module, technique: Technique) -> Callable[[], Any]:
            return lambda: module(*current[technique.name])

        return interleave(
            {name: on_current(*call) for name, call in calls.items()},
            rounds,
            self.device,
            warmup=WARMUP,
            settle=SETTLE if self.device.type == "cpu" else 0.0,
            prepare=next_batch,
            announce=announce,
        )

    def _parts(self, adapter: ModelAdapter, wrap: Callable[[nn.Module], Module]) -> tuple[Module, Module, Module]:
        """Return the encoder, the embedding and the embedding without positions, each wrapped."""
        encoder = keeping(self._kept, wrap(adapter.encoder(("features",))))
        embedding = wrap(adapter.embedding())
        bare = wrap(adapter.without_position().embedding())
        return lambda *inputs: _features(encoder(*inputs)), embedding, bare

    def _packed_inputs(self, *inputs: Tensor) -> Inputs:
        return tuple(pack(dict(zip(self.adapter.input_format.names, inputs, strict=True))).values())

    def _arrange(self, batch: Batch, dtype: torch.dtype) -> Inputs:
        return tuple(
            tensor.to(self.device, dtype if tensor.is_floating_point() else tensor.dtype)
            for tensor in self.adapter.input_format.arrange(batch)
        )


def keeping(kept: Kept, module: Module) -> Module:
    """Return a module of a cast model that computes its scores in float32 at each call, if they are kept there.

    Args:
        kept: of the model.
        module: or a function that calls it.
    """
    if not kept.softmax:
        return module

    def run(*inputs: Tensor) -> Any:
        with keeping_softmax(kept):
            return module(*inputs)

    return run


def count_flops(model: nn.Module, images: int, tokens: int) -> int:
    """Return the floating-point operations of a forward of the encoder, two for each multiply-add of its matmuls.

    Padding is counted, for it is computed. The position embedding is not: a dear way to it is no work done.

    Args:
        model: a model that `vectorize` takes; it is neither run nor changed.
        images: in the batch.
        tokens: that each image is padded to.
    """
    adapter = adapter_of(copy.deepcopy(model).to("meta").requires_grad_(False)).without_position()
    batch = workload("naflex", 1, tokens, adapter.token_width)
    arranged = adapter.input_format.arrange(batch)
    shapes_only = FakeTensorMode(allow_non_fake_inputs=True)  # of the kind that models do not ask for values
    inputs = [shapes_only.from_tensor(tensor.expand(images, *tensor.shape[1:]).to("meta")) for tensor in arranged]
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), shapes_only, counter:
        adapter.encoder(("features",))(*inputs)
    return counter.get_total_flops()


def matrix_rate(device: torch.device, dtype: torch.dtype, size: int | None = None, rounds: int = 10) -> float:
    """Return the floating-point operations a second that the device reaches on a square matmul, at the median.

    Args:
        device: to measure.
        dtype: of the matrices.
        size: rows and columns; by default 8192 on a GPU and 1024 on a CPU, large enough that more does not help.
        rounds: that count.
    """
    size = size or (8192 if device.type == "cuda" else 1024)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    (timing,) = interleave({"matmul": lambda: left @ right}, rounds, device, warmup=3).values()
    return 2 * size**3 / (timing.ms / 1000)


def _figures(found: Figures, timings: dict[str, Timing], first: str) -> Figures:
    """Return what was found of a technique with what its times say."""
    timing = timings.get(found.technique)
    if timing is None:
        return found
    embedding, bare = (timings.get(f"{found.technique}: {part}") for part in ("embedding", "bare"))
    share = None if embedding is None else embedding.ratio_to(timing)
    return replace(
        found,
        timing=timing,
        speedup=timings[first].ratio_to(timing) if first in timings else None,
        embed_share=share,
        position_share=None if share is None or bare is None else share - bare.ratio_to(timing),
    )


def _features(output: Any) -> Tensor:
    """Return the features among what an encoder, a model or a Runner gives."""
    if isinstance(output, dict):
        return output["features"]
    return output[0] if isinstance(output, tuple | list) else output


def first_line(error: BaseException) -> str:
    """Return what an error says, in a line short enough for a table."""
    said = (str(error).strip() or "no message").splitlines()[0][:200]
    return said if isinstance(error, NaflexExportError) else f"{type(error).__name__}: {said}"
