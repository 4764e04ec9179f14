"""Faults of embed/: batches, plans and arrays."""

from __future__ import annotations

from code_mutants.mutant import CodeMutant

ARRAYS = ("tests/embed/test_arrays.py",)
BATCHER = ("tests/embed/test_batcher.py",)
PLAN = ("tests/embed/test_plan.py",)

EMBED = (
    CodeMutant(
        "late images of other buckets stay where they are",
        "embed/batcher.py",
        "if not at_once and 0 < sum(late) <= self.size:",
        "if False:",
        BATCHER,
    ),
    CodeMutant(
        "a late batch has the smallest of its images' buckets",
        "embed/batcher.py",
        "return self._batch(max(number for",
        "return self._batch(min(number for",
        BATCHER,
    ),
    CodeMutant(
        "a late batch is not filled from the next smaller bucket",
        "embed/batcher.py",
        "if self._queues[each]][:1] if fill else []",
        "if self._queues[each]][:0] if fill else []",
        BATCHER,
    ),
    CodeMutant(
        "a late batch is filled from all smaller buckets",
        "embed/batcher.py",
        "if self._queues[each]][:1] if fill else []",
        "if self._queues[each]] if fill else []",
        BATCHER,
    ),
    CodeMutant(
        "an image is late one moment after its bound",
        "embed/batcher.py",
        "waiting.since + self.wait <= now",
        "waiting.since + self.wait < now",
        BATCHER,
    ),
    CodeMutant(
        "of two full batches that of the largest bucket comes first",
        "embed/batcher.py",
        "key=lambda queue: self._queues[queue][0].number",
        "key=lambda queue: -queue",
        BATCHER,
    ),
    CodeMutant(
        "the best cut into fewer runs is forgotten",
        "embed/plan.py",
        "            found = best[:end] + (before[end] - before[:end]) * price[end - 1]",
        "            found = (before[end] - before[:end]) * price[end - 1]",
        PLAN,
    ),
    CodeMutant(
        "a plan has as many buckets as it may, whatever they save",
        "embed/plan.py",
        "    runs = int(np.argmin(totals)) + 1\n",
        "    runs = len(totals)\n",
        PLAN,
    ),
    CodeMutant(
        "the largest bucket ends where the sample does",
        "embed/plan.py",
        "    ends = np.array(sorted({*counts, tokens}), dtype=np.int64)",
        "    ends = np.array(sorted(counts), dtype=np.int64)",
        PLAN,
    ),
    CodeMutant(
        "a further bucket is taken however little it saves",
        "embed/plan.py",
        "found.cost <= best + NEAR * one",
        "found.cost <= best",
        PLAN,
    ),
    CodeMutant(
        "coordinates may go through a grid in any order",
        "embed/arrays.py",
        "    if not np.array_equal(coordinates, np.indices(grid).reshape(2, -1).T):",
        "    if not len(coordinates):",
        ARRAYS,
    ),
    CodeMutant(
        "valid tokens may come after padding",
        "embed/arrays.py",
        "not count or not valid[:count].all() or",
        "not count or",
        ARRAYS,
    ),
    CodeMutant(
        "patches may hold values that are not finite",
        "embed/arrays.py",
        "    if not np.isfinite(patches).all():",
        "    if False:",
        ARRAYS,
    ),
)
