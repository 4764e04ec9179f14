"""`Comparison`: reference, candidate, and in low precision the baseline, run on the same batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from naflex_export.accuracy.by_length import run_by_length
from naflex_export.accuracy.metrics import LIMITS, Limits, Measures, measure
from naflex_export.accuracy.reference import SoundInterpolate
from naflex_export.accuracy.results import BASELINE_FACTOR
from naflex_export.batch import Batch
from naflex_export.errors import RequestError
from naflex_export.models.adapter import ModelAdapter
from naflex_export.models.copies import whole_copy
from naflex_export.models.encoder_adapter import EncoderAdapter, Outputs
from naflex_export.models.mixed_precision import cast_encoder, cast_model, keeping_softmax
from naflex_export.models.quantized import quantize_eagerly, quantized_layers
from naflex_export.models.rounding import refuse_rounded
from naflex_export.precision import ALL_LOW, Precision
from naflex_export.serving.input_formats import InputFormat
from naflex_export.serving.packed_format import PACKED
from naflex_export.serving.packing import padded_rows
from naflex_export.serving.runner import Runner
from naflex_export.serving.tensors import plain
from naflex_export.serving.tower_format import TowerFormat

MOVED_BASELINES = 8
"""How often eager is asked again, on moved inputs, on a case that narrowly fails."""

Candidate = Callable[..., Any]
Adapter = TypeVar("Adapter", bound=EncoderAdapter)


@dataclass
class EagerOutputs:
    """What reference and baseline gave on batches, for another candidate that is judged on the same.

    Attributes:
        repeats: whether that of a batch is kept, by its name, which says all that it is drawn from.
        of: by the batch's name, the reference's outputs and the baseline's.
    """

    repeats: Callable[[str], bool]
    of: dict[str, tuple[Outputs, Outputs]] = field(default_factory=dict)


class Comparison:
    """Runs reference, candidate and baseline on the same batches.

    Attributes:
        candidate: what is judged; it takes its patches in `precision`.
        outputs: names of the outputs, in order.
        precision: the candidate's.
        limits: the worst measures that pass in it, but where eager itself is near to them.
        input_format: how the candidate takes a batch; the reference takes its own, which is padded but for towers.
        reference: the eager model, in float32 and eval mode on a CPU.
        baseline: the same in the candidate's precision; none in float32.
        contents: [n, D] patches of photos, which stand in for the noise of generated batches where layers are
            quantized: their scales are of photos, and noise exceeds them.
        calls: of the candidate, so far.
        eager: where what eager gives on named batches is kept; None where nobody asks again.
    """

    def __init__(
        self,
        candidate: Candidate,
        reference: EncoderAdapter,
        outputs: tuple[str, ...],
        precision: Precision,
        packed: bool = False,
    ) -> None:
        self.candidate, self.outputs, self.calls = candidate, outputs, 0
        self.contents: Tensor | None = None
        self.eager: EagerOutputs | None = None
        self.precision, self.limits = precision, LIMITS[precision.limits]
        self.reference = float32_reference(reference)
        own = self.reference.input_format
        self.input_format: InputFormat = PACKED if packed and not own.is_packed else own
        self._reference = self.reference.encoder(outputs)
        self.baseline: EncoderAdapter | None = None
        self._baseline, self._kept = None, ALL_LOW
        if precision.is_low:
            self.baseline = self.reference.of(whole_copy(self.reference.model))
            layers = quantized_layers(self.baseline, precision)
            quantize_eagerly(self.baseline, layers, precision.quantized)  # ahead of casts, which would round twice
            self._kept = cast_model(self.baseline, precision)
            self._baseline = cast_encoder(self.baseline.encoder(outputs), precision)

    def filled(self, batch: Batch) -> Batch:
        """Return a generated batch as it is judged: where layers are quantized, with patches of photos."""
        if self.contents is None or not self.precision.quantized:
            return batch
        images, tokens = batch.patch_valid.shape
        numbers = (torch.arange(tokens) + 7 * torch.arange(images).unsqueeze(1)) % len(self.contents)
        return replace(batch, patches=self.contents[numbers].where(batch.patch_valid.unsqueeze(-1), 0))

    def reference_of(self, batch: Batch) -> Outputs:
        """Return the reference's outputs, by name."""
        with torch.no_grad(), SoundInterpolate():
            given = self._reference(*self._eager_inputs(batch, torch.float32))
        return self._own(batch, dict(zip(self.outputs, given, strict=True)))

    def references_of(self, batches: Sequence[Batch]) -> list[Outputs]:
        """Return the reference's outputs for each of several batches: as `reference_of`, with zeros for padding.

        Images that are padded are run by their length, with little padding; of texts padding may count.
        """
        form = self.reference.input_format
        if not isinstance(self.reference, ModelAdapter) or form.is_packed or not form.masks:
            return [self.reference_of(batch) for batch in batches]
        return run_by_length(self.reference_of, batches, self.reference.num_prefix_tokens)

    def baseline_of(self, batch: Batch) -> Outputs:
        """Return the outputs of eager in `precision`, by name; nothing in float32, whose floor the limits know."""
        if self._baseline is None:
            return {}
        with torch.no_grad(), SoundInterpolate(), keeping_softmax(self._kept):
            given = self._baseline(*self._eager_inputs(batch))
        return self._own(batch, dict(zip(self.outputs, given, strict=True)))

    def eager_of(self, batch: Batch) -> tuple[Outputs, Outputs]:
        """Return the outputs of the reference and of the baseline, each by name."""
        if self.eager is None or not self.eager.repeats(batch.name):
            return self.references_of([batch])[0], self.baseline_of(batch)
        if batch.name not in self.eager.of:
            self.eager.of[batch.name] = self.references_of([batch])[0], self.baseline_of(batch)
        return self.eager.of[batch.name]

    def _own(self, batch: Batch, outputs: Outputs) -> Outputs:
        """Return what eager gave, with padding between the images where it takes packs only."""
        return self.padded(batch, outputs) if self.reference.input_format.is_packed else outputs

    def moved_baselines_of(self, batch: Batch) -> Iterator[Outputs]:
        """Yield what eager in `precision` says where each value of the patches is moved within a step of rounding.

        So it shows how far off other roundings of the same numbers may come to be: on one image in thousands several
        times as far as its own. In float32 there is none.
        """
        step = torch.finfo(self.precision.torch_dtype).eps
        for seed in range(MOVED_BASELINES if self.precision.is_low else 0):
            noise = torch.rand(batch.patches.shape, generator=torch.Generator().manual_seed(seed)) - 0.5
            yield self.baseline_of(replace(batch, patches=batch.patches * (1 + step * noise)))

    def candidate_of(self, batch: Batch, checked: bool = True) -> Outputs:
        """Return the candidate's outputs, by name; whatever names it gives. Rows of a pack get padding.

        Args:
            batch: what to run.
            checked: with a Runner's checks of what it is given, as a caller has them.
        """
        inputs = self.inputs(batch)
        self.calls += 1
        with torch.no_grad():
            if isinstance(self.candidate, Runner) and not checked:
                given = self.candidate.execute(tuple(plain(tensor, self.candidate.device) for tensor in inputs))
                return self.padded(batch, dict(zip(self.outputs, given, strict=True)))
            return self.padded(batch, self.named(self.candidate(*inputs)))

    def unchecked(self, output: str) -> Callable[[Batch], Tensor]:
        """Return what runs the candidate past a Runner's checks: a masked token makes a batch that no loader would.

        Args:
            output: what to return of what it gives; of one with a row for each token, zeros for padding.
        """

        def run(batch: Batch) -> Tensor:
            found = self.candidate_of(batch, checked=False)[output]
            valid = self.valid_in(batch, found)
            return found if valid is None else found.where(valid.to(found.device).unsqueeze(-1), 0)

        return run

    def named(self, given: Any) -> Outputs:
        """Return what a candidate gave, by the outputs' names."""
        found = self.reference.unpack(given)
        return dict(found) if isinstance(found, dict) else {self.outputs[0]: found}

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """Return a batch as the candidate takes it, floating tensors in its dtype."""
        return _cast(self.input_format.arrange(batch), self.precision.torch_dtype)

    def _eager_inputs(self, batch: Batch, dtype: torch.dtype | None = None) -> tuple[Tensor, ...]:
        """Return a batch as the reference takes it, floating tensors in a dtype, by default the candidate's."""
        return _cast(self.reference.input_format.arrange(batch), dtype or self.precision.torch_dtype)

    def padded(self, batch: Batch, outputs: Outputs) -> Outputs:
        """Return what was given for a batch with padding between a pack's rows, as padded models give it.

        A tensor of any other shape than a pack's is left as it is, for the comparison to say so.

        Args:
            batch: that the candidate was given.
            outputs: what it gave, by name.
        """
        if not self.input_format.is_packed:
            return outputs
        pooled = set(self.reference.default_outputs) & {"features"}  # of as many rows as images, like single tokens
        return {name: value if name in pooled else self.padded_value(batch, value) for name, value in outputs.items()}

    def padded_value(self, batch: Batch, value: Tensor) -> Tensor:
        """Return a value that has a row for each token of a pack, [R, C] or [1, R, C], as a padded reference has it.

        A tensor of any other shape is returned as it is.

        Args:
            batch: that was packed.
            value: what the candidate, or a module of it, gave.
        """
        prefix, tokens = self.reference.num_prefix_tokens, int(batch.patch_valid.sum())
        rows = value.squeeze(0) if value.ndim == 3 else value
        if isinstance(self.input_format, TowerFormat):
            rows = self.input_format.by_token(rows, batch.grids)
        for count in dict.fromkeys((prefix, 0)):
            if rows.ndim == 2 and len(rows) == count * len(batch.grids) + tokens:
                return padded_rows(rows, batch.patch_valid, count)
        return value

    def compared(
        self, batch: Batch, output: str, given: Tensor, wanted: Tensor, floor: Tensor | None
    ) -> tuple[Measures, Measures | None, Limits]:
        """Return how far what was given for an output is from what is wanted, how far the baseline is, and the limits.

        Logits that nearly tie may swap. In float32 there is no `floor`, and no measures of it. Where layers are
        quantized the limits do not give way to it: eager, quantized as simply, may be as useless.

        Args:
            batch: what both were run on.
            output: its name.
            given: by the candidate.
            wanted: the reference's.
            floor: the baseline's; None in float32.
        """
        logits, valid = output == "features" and self.reference.num_classes > 1, self.valid_in(batch, wanted)
        baseline = None if floor is None else measure(floor, wanted, valid, self.limits.tie if logits else None)
        limits = self.limits if self.precision.quantized else self.limits.widened_by(baseline, BASELINE_FACTOR)
        return measure(given, wanted, valid, limits.tie if logits else None), baseline, limits

    def valid_in(self, batch: Batch, output: Tensor) -> Tensor | None:
        """Return which rows of an output to compare; None for all."""
        return self.valid_rows(batch) if output.ndim == 3 else None

    def valid_rows(self, batch: Batch) -> Tensor:
        """Return [B, prefix + N] bool, the valid tokens of an encoder's output: prefix tokens always are."""
        prefix = batch.patch_valid.new_ones(len(batch.patch_valid), self.reference.num_prefix_tokens)
        return torch.cat([prefix, batch.patch_valid], dim=1)


def _cast(tensors: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    return tuple(tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in tensors)


def float32_reference(adapter: Adapter) -> Adapter:
    """Return the model itself if it is in float32 and eval mode on a CPU, else such a copy of it.

    Raises:
        RequestError: it is vectorized, or was rounded by a copy that is, so it would be no reference.
    """
    if adapter.is_vectorized:
        raise RequestError("the reference is a vectorized model: pass the original, which nothing of ours has touched")
    model = adapter.model
    refuse_rounded(model)
    state = [*model.parameters(), *model.buffers()]
    fit = all(t.device.type == "cpu" and (t.dtype == torch.float32 or not t.is_floating_point()) for t in state)
    if fit and not any(module.training for module in model.modules()):
        return adapter
    return adapter.of(whole_copy(model).to("cpu", torch.float32).eval())
