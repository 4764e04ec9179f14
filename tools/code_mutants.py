"""Faults of the code, each made by changing a line of it, and the tests that are to notice. `mutate.py` runs them.

They are not those of docs/mutants.md, which are wrong models and artifacts that the gate is to notice.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CodeMutant:
    """A change to the code that makes it wrong.

    Attributes:
        name: what is wrong then.
        file: that is changed, in the package.
        old: text that is there once.
        new: what is put in its place.
        tests: files of tests, or tests in them, in which at least one must fail.
        survives: why none does, where that is known and accepted.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    survives: str = ""


ARRAYS = ("tests/embed/test_arrays.py",)
BATCHER = ("tests/embed/test_batcher.py",)
CPU = ("tests/resample/test_resample_cpu.py",)
GATE = "tests/accuracy/test_gate.py::test_"
INVARIANCES = "tests/accuracy/test_invariances.py::test_"
MANIFEST = ("tests/serving/test_manifest.py",)
PASSES = ("tests/graph/test_onnx_passes.py",)
PLAN = ("tests/embed/test_plan.py",)
PREPROCESSING = ("tests/models/test_preprocessing.py",)
RUNNER = ("tests/serving/test_runner.py::test_inputs_outside_the_artifact_are_refused",)
SIGLIP2 = "tests/models/test_siglip2.py::test_"
TENSORRT = ("tests/serving/test_tensorrt_runner.py",)
TRITON = ("tests/server/test_triton.py",)
TIMM = "tests/models/test_timm_naflex.py::test_"

CODE_MUTANTS = (
    CodeMutant(
        "the aspect is lost where one side is the source's",
        "models/timm_naflex.py",
        "(grid_B2 == source_2).all(dim=1, keepdim=True)",
        "(grid_B2 == source_2).any(dim=1, keepdim=True)",
        (f"{TIMM}aspect_is_kept_for_every_grid",),
    ),
    CodeMutant(
        "the masked maximum reads padding",
        "models/timm_naflex.py",
        "read_BNC.masked_fill(~valid_BN.unsqueeze(-1),",
        "read_BNC.masked_fill(valid_BN.unsqueeze(-1) & False,",
        (f"{TIMM}the_graphs_own_pooling_equals_timms",),
    ),
    CodeMutant(
        "a model with RoPE alone counts as one that ignores coordinates",
        "models/timm_naflex.py",
        'embeds.pos_embed_type != "none" or self.model.rope is not None',
        'embeds.pos_embed_type != "none"',
        (f"{TIMM}coordinates_are_ignored_by_models_that_have_no_use_for_them",),
    ),
    CodeMutant(
        "a folded patch weight ignores channels-first",
        "models/timm_patch_size.py",
        "embeds.patch_size, size, resampling, channels_last=last)",
        "embeds.patch_size, size, resampling, channels_last=True)",
        ("tests/serving/test_patch_sizes.py::test_a_folded_weight_equals_timms_own_resampling",),
    ),
    CodeMutant(
        "mean and standard deviation swapped in the manifest",
        "models/timm_naflex.py",
        "mean=tuple(settings.mean),\n            std=tuple(settings.std),",
        "mean=tuple(settings.std),\n            std=tuple(settings.mean),",
        PREPROCESSING,
    ),
    CodeMutant(
        "mean and standard deviation swapped in the transform",
        "models/timm_naflex.py",
        'mean=settings["mean"],\n            std=settings["std"],',
        'mean=settings["std"],\n            std=settings["mean"],',
        PREPROCESSING,
    ),
    CodeMutant(
        "the interpolation of photos dropped",
        "models/timm_naflex.py",
        '            interpolation=settings["interpolation"],\n',
        "",
        PREPROCESSING,
    ),
    CodeMutant(
        "the order of a patch's values dropped",
        "models/timm_naflex.py",
        'order = {} if settings["channels_last"] else {"patchify_channels_last": False}',
        "order: dict[str, bool] = {}",
        PREPROCESSING,
    ),
    CodeMutant(
        "the processor beside a model's weights ignored",
        "models/siglip2.py",
        "return Siglip2ImageProcessor.from_pretrained(origin), origin",
        "return Siglip2ImageProcessor(), origin",
        PREPROCESSING,
    ),
    CodeMutant(
        "patches in another order than their coordinates",
        "models/siglip2.py",
        "torch.tensor(grid.coordinates())",
        "torch.tensor(grid.coordinates()).flip(-1)",
        PREPROCESSING,
    ),
    CodeMutant(
        "a width of zero is divided by",
        "models/siglip2.py",
        "row_BN = token_BN // width_B1.clamp(min=1)",
        "row_BN = token_BN // width_B1",
        (f"{SIGLIP2}a_grid_without_cells_harms_no_other_image",),
    ),
    CodeMutant(
        "a width of zero is divided by in the check of coordinates",
        "serving/input_formats.py",
        "width_B1 = np.maximum(grid_B2[:, 1:], 1)",
        "width_B1 = grid_B2[:, 1:]",
        RUNNER,
    ),
    CodeMutant(
        "coordinates of padding are not looked at",
        "serving/input_formats.py",
        "wrong_B = (coord_BN2 != expected).any(axis=(1, 2))",
        "wrong_B = ((coord_BN2 != expected) & valid_BN[..., None]).any(axis=(1, 2))",
        RUNNER,
    ),
    CodeMutant(
        "images are grouped by grid without their lengths",
        "resample/cpu.py",
        "key = (h, w, row_length, column_length)",
        "key = (h, w)",
        CPU,
    ),
    CodeMutant(
        "tokens in any memory are added to directly",
        "resample/cpu.py",
        "direct = x_BNC.dtype is torch.float32 and x_BNC.is_contiguous()",
        "direct = x_BNC.dtype is torch.float32",
        CPU,
    ),
    CodeMutant(
        "a TorchScript trace gets the operator",
        "resample/add.py",
        "return torch.compiler.is_exporting() or torch.jit.is_tracing()",
        "return torch.compiler.is_exporting()",
        CPU,
    ),
    CodeMutant(
        "links inside an artifact are followed",
        "serving/manifest.py",
        "if path.is_symlink() or not path.resolve()",
        "if not path.resolve()",
        MANIFEST,
    ),
    CodeMutant(
        "links to folders inside an artifact are followed",
        "serving/manifest.py",
        "return path.is_dir() and not path.is_symlink()",
        "return path.is_dir()",
        MANIFEST,
    ),
    CodeMutant(
        "the destination is not looked at again before the swap",
        "serving/publish.py",
        "    check_destination(out)\n    old = None\n",
        "    old = None\n",
        MANIFEST,
    ),
    CodeMutant(
        "the old artifact is not put back",
        "serving/publish.py",
        "        old.rename(out)\n        raise\n",
        "        raise\n",
        MANIFEST,
    ),
    CodeMutant(
        "an artifact is its owner's alone",
        "serving/publish.py",
        "            folder.chmod(0o755)\n",
        "",
        MANIFEST,
    ),
    CodeMutant(
        "invariances run after a case that could not be compared",
        "accuracy/gate.py",
        "and not tally.problems and not cases.only",
        "and not cases.only",
        (f"{INVARIANCES}invariances_are_asked_of_what_could_be_compared_alone",),
    ),
    CodeMutant(
        "shapes are compared by their number of values",
        "accuracy/tally.py",
        "if given.shape != expected.shape:",
        "if given.numel() != expected.numel():",
        (f"{GATE}as_many_values_in_another_shape_are_not_compared",),
    ),
    CodeMutant(
        "a quick gate asks invariances in the smallest bucket",
        "accuracy/gate.py",
        "settings.buckets[-1:]",
        "settings.buckets[:1]",
        (f"{GATE}quick_and_thorough_skip_and_add",),
    ),
    CodeMutant(
        "a root mean square is a mean",
        "accuracy/tally.py",
        "return math.sqrt(sum(value * value for value in values) / len(values))",
        "return sum(values) / len(values)",
        (f"{GATE}errors_over_all_cases_are_root_mean_squares",),
    ),
    CodeMutant(
        "the limit of masking a thousand times smaller",
        "accuracy/invariances.py",
        "MOVED = 1e-6",
        "MOVED = 1e-9",
        (f"{INVARIANCES}masking_a_token_must_move_more_than_rounding_does",),
    ),
    CodeMutant(
        "tensors in attributes stay bfloat16",
        "graph/onnx_rounding.py",
        "attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == narrow",
        "False",
        PASSES,
    ),
    CodeMutant(
        "any Reshape is laid to what it reads",
        "graph/onnx_passes.py",
        "if maker is None or given is None or shape is None or given.shape != shape or shape.has_unknown_dim():",
        "if maker is None or given is None:",
        PASSES,
    ),
    CodeMutant(
        "a Reshape to unknown sizes is laid to what it reads",
        "graph/onnx_passes.py",
        "given.shape != shape or shape.has_unknown_dim():",
        "given.shape != shape:",
        PASSES,
    ),
    CodeMutant(
        "who asks for a shape counts as a reader",
        "graph/onnx_passes.py",
        'for node, _ in value.uses() if node.op_type != "Shape")',
        "for node, _ in value.uses())",
        PASSES,
    ),
    CodeMutant(
        "what attention reads besides its mask is dropped",
        "graph/onnx_attention.py",
        "*attention.inputs[3:]",
        "*attention.inputs[3:4]",
        ("tests/graph/test_onnx_attention.py",),
    ),
    CodeMutant(
        "an engine is deserialised on the current device",
        "serving/tensorrt_runner.py",
        "with self._gpu.current(), self._log.recording() as messages:",
        "with self._log.recording() as messages:",
        TENSORRT,
    ),
    CodeMutant(
        "an engine runs on the current device",
        "serving/tensorrt_runner.py",
        "        with self._gpu.current():\n            outputs = run(",
        "        if True:\n            outputs = run(",
        TENSORRT,
    ),
    CodeMutant(
        "each call has a stream of its own",
        "serving/tensorrt_contexts.py",
        "        try:\n            yield found\n",
        "        try:\n            found.stream = found.gpu.new_stream()\n            yield found\n",
        TENSORRT,
    ),
    CodeMutant(
        "an engine runs on the caller's stream",
        "serving/tensorrt_contexts.py",
        "execute_async_v3(self.stream.cuda_stream)",
        "execute_async_v3(self.gpu.callers_stream().cuda_stream)",
        TENSORRT,
    ),
    CodeMutant(
        "outputs lie in memory of the engine's stream",
        "serving/tensorrt_contexts.py",
        "self.gpu.empty(tuple(self._context.get_tensor_shape(spec.name)), getattr(torch, spec.dtype))",
        "self.gpu.tensor(self._context.get_tensor_shape(spec.name), getattr(torch, spec.dtype), self.stream)",
        TENSORRT,
    ),
    CodeMutant(
        "an engine does not wait for the caller's stream",
        "serving/tensorrt_runner.py",
        "            context.stream.wait_stream(caller)\n",
        "",
        TENSORRT,
    ),
    CodeMutant(
        "the caller's stream does not wait for the engine",
        "serving/tensorrt_runner.py",
        "            caller.wait_stream(context.stream)\n",
        "",
        TENSORRT,
    ),
    CodeMutant(
        "parts of tensors are passed where they lie",
        "serving/tensorrt_runner.py",
        "read = [gpu.readable(tensor) for tensor in inputs]",
        "read = [tensor.contiguous() for tensor in inputs]",
        TENSORRT,
    ),
    CodeMutant(
        "strides of tensors are not looked at",
        "serving/gpu.py",
        "if tensor.is_contiguous() and tensor.data_ptr() % ALIGNMENT == 0:",
        "if tensor.data_ptr() % ALIGNMENT == 0:",
        TENSORRT,
    ),
    CodeMutant(
        "a refused shape is ignored",
        "serving/tensorrt_contexts.py",
        "if not self._context.set_input_shape(spec.name, tuple(tensor.shape)):",
        "if self._context.set_input_shape(spec.name, tuple(tensor.shape)) is None:",
        TENSORRT,
    ),
    CodeMutant(
        "a refused address is ignored",
        "serving/tensorrt_contexts.py",
        "if not self._context.set_tensor_address(spec.name, tensor.data_ptr()):",
        "if self._context.set_tensor_address(spec.name, tensor.data_ptr()) is None:",
        TENSORRT,
    ),
    CodeMutant(
        "a refused profile is ignored",
        "serving/tensorrt_contexts.py",
        "if not self._context.set_optimization_profile_async(profile, self.stream.cuda_stream):",
        "if self._context.set_optimization_profile_async(profile, self.stream.cuda_stream) is None:",
        TENSORRT,
    ),
    CodeMutant(
        "a refused run is ignored",
        "serving/tensorrt_contexts.py",
        "if not self._context.execute_async_v3(self.stream.cuda_stream):",
        "if self._context.execute_async_v3(self.stream.cuda_stream) is None:",
        TENSORRT,
    ),
    CodeMutant(
        "shapes are not inferred before a run",
        "serving/tensorrt_contexts.py",
        "missing = self._context.infer_shapes()",
        "missing = []",
        TENSORRT,
    ),
    CodeMutant(
        "the profile is not set",
        "serving/tensorrt_contexts.py",
        "if not self._context.set_optimization_profile_async(profile, self.stream.cuda_stream):",
        "if profile < 0:",
        TENSORRT,
    ),
    CodeMutant(
        "every call takes the first profile",
        "serving/tensorrt_runner.py",
        "            if bucket.takes(sizes):\n                return index\n",
        "            if bucket.takes(sizes):\n                return 0\n",
        TENSORRT,
    ),
    CodeMutant(
        "two calls share a context",
        "serving/tensorrt_contexts.py",
        "None if at is None else self._idle.pop(at)[1]",
        "None if at is None else self._idle[at][1]",
        TENSORRT,
    ),
    CodeMutant(
        "contexts are destroyed while their work is queued",
        "serving/tensorrt_contexts.py",
        "            one.stream.synchronize()\n",
        "            pass\n",
        TENSORRT,
    ),
    CodeMutant(
        "a runner that goes does not wait for its work",
        "serving/tensorrt_contexts.py",
        "away first\n            self.drop()",
        "away first\n            pass",
        TENSORRT,
    ),
    CodeMutant(
        "an engine's dtypes are not looked at",
        "serving/tensorrt_runner.py",
        "        if found != expected:\n",
        "        if set(found) != set(expected):\n",
        TENSORRT,
    ),
    CodeMutant(
        "an engine's profiles are not counted",
        "serving/tensorrt_runner.py",
        "if engine.num_optimization_profiles != len(manifest.buckets):",
        "if engine.num_optimization_profiles < 0:",
        TENSORRT,
    ),
    CodeMutant(
        "any library may run an engine",
        "serving/tensorrt_runner.py",
        '    name = manifest.build["library"]\n',
        "    name = LIBRARIES[0]\n",
        TENSORRT,
    ),
    CodeMutant(
        "TensorRT's log is kept for ever",
        "serving/tensorrt_log.py",
        "                del self.recordings[id(messages)]\n",
        "",
        TENSORRT,
    ),
    CodeMutant(
        "a captured run does not wait for the caller's stream",
        "serving/tensorrt_capture.py",
        "        self.stream.wait_stream(caller)\n",
        "",
        TENSORRT,
    ),
    CodeMutant(
        "the caller's stream does not wait for a captured run",
        "serving/tensorrt_capture.py",
        "        caller.wait_stream(self.stream)\n",
        "",
        TENSORRT,
    ),
    CodeMutant(
        "a run is captured that TensorRT has not made once",
        "serving/tensorrt_capture.py",
        "        context.run()\n        self.stream.synchronize()\n",
        "",
        TENSORRT,
    ),
    CodeMutant(
        "outputs of a captured run are those of the next call",
        "serving/tensorrt_capture.py",
        "        return outputs\n",
        "        return self._outputs\n",
        TENSORRT,
    ),
    CodeMutant(
        "a captured run does not keep its memory",
        "serving/tensorrt_capture.py",
        "        self._memory = context.use_memory()\n",
        "        context.use_memory()\n",
        TENSORRT,
    ),
    CodeMutant(
        "a captured run does not keep its context",
        "serving/tensorrt_capture.py",
        "        self._context, self._gpu = context, context.gpu\n",
        "        self._gpu = context.gpu\n",
        TENSORRT,
    ),
    CodeMutant(
        "a captured run reads the inputs that it was captured with",
        "serving/tensorrt_capture.py",
        "            gpu.copy(given, held, self.stream)\n",
        "            pass\n",
        TENSORRT,
    ),
    CodeMutant(
        "a captured run of one shape serves every other",
        "serving/tensorrt_runner.py",
        "self._captured.taken((profile, shapes))",
        "self._captured.taken((profile, shapes[:0]))",
        TENSORRT,
    ),
    CodeMutant(
        "captured runs are kept for ever",
        "serving/tensorrt_contexts.py",
        "first_kept = 0 if most is None else",
        "first_kept = 0 if most else",
        TENSORRT,
    ),
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
    CodeMutant(
        "a request to Triton gets the vectors of another",
        "server/triton_model.py",
        "    return [found[number] for number in range(len(images))]",
        "    return list(found.values())",
        TRITON,
    ),
    CodeMutant(
        "a model of others in a repository is replaced",
        "server/triton_repository.py",
        "        if not is_ours:",
        "        if False:",
        TRITON,
    ),
)
