"""Several patch sizes in one artifact: a Runner that picks the right one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from torch import Tensor

from naflex_export.errors import InputError, RequestError
from naflex_export.serving.manifest import Manifest
from naflex_export.serving.runner import Runner


class PatchSizesRunner(Runner):
    """Runs an artifact of several patch sizes: each call by the entry point that its patches' width asks for.

    Attributes:
        runners: a Runner for each patch size; `run[16]` is the one for 16x16 pixels.
    """

    def __init__(self, manifest: Manifest, runners: dict[int, Runner]) -> None:
        first = next(iter(runners.values()))
        super().__init__(manifest, first.device)
        self.runners = runners
        self.check_inputs = first.check_inputs

    def __getitem__(self, patch_size: int) -> Runner:
        """Return the Runner of one patch size.

        Raises:
            RequestError: the artifact has none of that size, or was closed.
        """
        self.refuse_closed()
        if patch_size not in self.runners:
            raise RequestError(
                f"patch size {patch_size!r} is not in this artifact: expected one of {self._sizes()}; "
                "export again with it among --patch-size"
            )
        return self.runners[patch_size]

    def close(self) -> None:
        """Close the Runner of each patch size too."""
        for runner in vars(self).get("runners", {}).values():
            runner.close()
        super().close()

    def manifest_for(self, inputs: Sequence[object]) -> Manifest:
        return self._chosen(inputs).manifest

    def example(self, name: str, images: int, tokens: int) -> tuple[Tensor, ...]:
        return next(iter(self.runners.values())).example(name, images, tokens)

    def execute(self, inputs: tuple[Tensor, ...]) -> list[Tensor]:
        return self._chosen(inputs).execute(inputs)

    def warmup(self) -> Self:
        """Run each bucket of each patch size, as a Runner of one does."""
        self.refuse_closed()
        for runner in self.runners.values():
            runner.warmup()
        return self

    def trim(self) -> None:
        self.refuse_closed()
        for runner in self.runners.values():
            runner.trim()

    def _chosen(self, inputs: Sequence[object]) -> Runner:
        """Return the Runner for patches of this width; widths of different sizes differ."""
        by_width = {runner.manifest.inputs[0].shape[-1]: runner for runner in self.runners.values()}
        patches = inputs[0] if inputs else None
        if not isinstance(patches, Tensor) or patches.ndim != len(self.manifest.inputs[0].shape):
            return next(iter(by_width.values()))  # its own check says what is wrong
        chosen = by_width.get(patches.shape[-1])
        if chosen is None:
            widths = ", ".join(map(str, by_width))
            raise InputError(
                f"patches have {patches.shape[-1]} values each: expected {widths}, for patch sizes {self._sizes()}"
            )
        return chosen

    def _sizes(self) -> str:
        return ", ".join(map(str, self.runners))
