"""The TensorRT runner against a strict stand-in: every rule of TensorRT's and CUDA's that a CPU can hold it to."""

from __future__ import annotations

import dataclasses
import inspect
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import strict_tensorrt as strict
import tiny
import torch
from strict_gpu import StrictGpu, World
from strict_tensorrt import write_plan
from torch import Tensor, nn

import naflex_export as nx
from naflex_export.batch import noise_batch
from naflex_export.graph.build_settings import BuildSettings
from naflex_export.graph.onnx_translate import write_onnx
from naflex_export.graph.program import Program
from naflex_export.graph.trace import trace
from naflex_export.grid import Grid
from naflex_export.models import adapter_of
from naflex_export.serving import tensorrt_runner
from naflex_export.serving.gpu import Gpu
from naflex_export.serving.manifest import Manifest
from naflex_export.serving.tensorrt_runner import TensorRTRunner, why_not_on
from naflex_export.targets.tensorrt import profiles_of

BUCKETS = [nx.Bucket(16, (1, 2, 8)), nx.Bucket(24, (1, 2, 4))]
Inputs = tuple[Tensor, ...]
SMALL, LARGE = (Grid(3, 4), Grid(2, 2)), (Grid(4, 6), Grid(1, 3), Grid(5, 4))


@pytest.fixture(scope="module")
def program() -> Program:
    return trace(adapter_of(tiny.shallow_classifier()), BUCKETS, outputs=("features", "tokens"))


@pytest.fixture(scope="module")
def folder(program: Program, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the graph, and the engine that stands for it."""
    made = tmp_path_factory.mktemp("engine")
    write_onnx(program, made, BuildSettings(), 20)
    write_plan(made / "model.plan", made / "model.onnx", manifest_of(program), profiles_of(program))
    return made


def manifest_of(program: Program, library: str = "tensorrt") -> Manifest:
    build = {"library": library, "library_version": "10.13", "compute_capability": "9.0"}
    return Manifest("trt", "float32", program.inputs, program.outputs, program.buckets, {}, {}, {}, build)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """What the stand-ins share; no rule may have been broken by the end."""
    made = World()
    monkeypatch.setitem(sys.modules, "tensorrt", strict.library(made))
    yield made
    assert made.faults == []


@pytest.fixture
def gpu(world: World) -> StrictGpu:
    return StrictGpu(world)


@pytest.fixture(params=[None, nx.EngineSettings(cuda_graph=True)], ids=["queued", "captured"])
def runner(gpu: StrictGpu, program: Program, folder: Path, request: pytest.FixtureRequest) -> TensorRTRunner:
    """A runner that queues each call by itself, and one that replays a CUDA graph of each shape."""
    path, manifest = folder / "model.plan", manifest_of(program)
    return TensorRTRunner(path, manifest, torch.device("cpu"), gpu, settings=request.param)


def captured_only(test: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.parametrize("runner", [nx.EngineSettings(cuda_graph=True)], indirect=True, ids=["captured"])(
        test
    )


def queued_only(test: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.parametrize("runner", [None], indirect=True, ids=["queued"])(test)


def inputs(*grids: Grid, tokens: int = 16) -> Inputs:
    batch = noise_batch("trt", grids, tokens, 48)
    return batch.patches, batch.patch_coord, batch.patch_valid


def eager(given: Inputs) -> list[Tensor]:
    model = tiny.shallow_classifier()
    with torch.no_grad():
        return [model(*given), model.forward_features(*given)["patches"]]


def in_two_threads(call: Callable[[int], None]) -> None:
    """Call with 0 and with 1 at one time, and return when both are done."""
    threads = [threading.Thread(target=call, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def assert_close(found: list[Tensor], given: Inputs) -> None:
    features, tokens = eager(given)
    valid = nn.functional.pad(given[2], (4, 0), value=True)
    assert (found[0] - features).abs().max() <= 1e-5 * features.abs().max()
    assert found[1].shape == tokens.shape
    assert (found[1] - tokens)[valid].abs().max() <= 1e-5 * tokens.abs().max()


@pytest.mark.parametrize(
    "given",
    [inputs(*SMALL), inputs(*LARGE, tokens=24), inputs(Grid(1, 1), tokens=1), inputs(*[Grid(2, 2)] * 8)],
    ids=["small", "large", "one-token", "most-images"],
)
def test_it_returns_what_eager_returns(runner: TensorRTRunner, gpu: StrictGpu, given: Inputs) -> None:
    found = runner.execute(tuple(map(gpu.given, given)))
    assert_close(gpu.read(*found), given)


def test_a_call_checks_its_inputs_and_names_its_outputs(runner: TensorRTRunner, gpu: StrictGpu) -> None:
    given = inputs(*SMALL)
    ready = tuple(map(gpu.given, given))
    gpu.read()
    found = runner(*ready)
    assert isinstance(found, dict) and list(found) == ["features", "tokens"]
    assert_close(gpu.read(*found.values()), given)
    with pytest.raises(nx.InputError, match="a batch of 9 with 16 tokens fits no bucket"):
        runner(*inputs(*[Grid(2, 2)] * 9))


def test_calls_of_either_profile_follow_each_other_without_waiting(runner: TensorRTRunner, gpu: StrictGpu) -> None:
    batches = [inputs(*SMALL), inputs(*LARGE, tokens=24), inputs(Grid(4, 4)), inputs(Grid(1, 20), tokens=20)]
    found = [runner.execute(tuple(map(gpu.given, given))) for given in batches]
    for outputs, given in zip(found, batches, strict=True):
        assert_close(gpu.read(*outputs), given)


def test_inputs_may_be_gone_before_the_engine_runs(runner: TensorRTRunner, gpu: StrictGpu) -> None:
    given = inputs(*SMALL)
    found = runner.execute(tuple(map(gpu.given, given)))
    # nothing holds the inputs now, and nothing has run
    assert_close(gpu.read(*found), given)


def test_a_call_waits_for_its_inputs_whichever_stream_a_gpu_works_on_first(
    runner: TensorRTRunner, gpu: StrictGpu, world: World
) -> None:
    given = inputs(*SMALL)
    before = (given[0].flip(0), *given[1:])  # of one shape, so that the second call replays what the first captured
    runner.execute(tuple(map(gpu.given, before)))
    found = runner.execute(tuple(map(gpu.given, given)))
    for stream in reversed(list(world.streams.values())):  # the caller's is the first
        stream.synchronize()
    assert_close(gpu.read(*found), given)


def test_outputs_may_be_gone_before_what_reads_them_runs(runner: TensorRTRunner, gpu: StrictGpu) -> None:
    given = inputs(*SMALL)
    features, tokens = runner.execute(tuple(map(gpu.given, given)))
    kept = [gpu.empty(tuple(output.shape), output.dtype) for output in (features, tokens)]
    for output, copy in zip((features, tokens), kept, strict=True):
        gpu.launch(lambda source, target: target.copy_(source), output, copy)
    del features, tokens, output
    assert_close(gpu.read(*kept), given)


def sliced(given: Inputs, gpu: StrictGpu) -> Inputs:
    """Return the last two images of a larger batch: not all begin at an aligned address."""
    return tuple(gpu.given(torch.cat([tensor[:1], tensor]))[1:] for tensor in given)


def strided(given: Inputs, gpu: StrictGpu) -> Inputs:
    return tuple(gpu.given(tensor.repeat_interleave(2, dim=0))[::2] for tensor in given)


def transposed(given: Inputs, gpu: StrictGpu) -> Inputs:
    return tuple(gpu.given(tensor.transpose(0, 1).contiguous()).transpose(0, 1) for tensor in given)


def expanded(given: Inputs, gpu: StrictGpu) -> Inputs:
    """Return as many views of the first image."""
    return tuple(gpu.given(tensor[:1]).expand_as(tensor) for tensor in given)


@pytest.mark.parametrize("part", [sliced, strided, transposed, expanded])
def test_parts_of_tensors_are_copied_where_they_must_be(
    runner: TensorRTRunner, gpu: StrictGpu, part: Callable[[Inputs, StrictGpu], Inputs]
) -> None:
    given = inputs(*SMALL, Grid(1, 5), tokens=15)
    parts = part(given, gpu)
    if part is expanded:
        given = tuple(tensor[:1].repeat(len(tensor), *[1] * (tensor.ndim - 1)) for tensor in given)
    assert any(tensor.data_ptr() % 256 or not tensor.is_contiguous() for tensor in parts)
    found = runner.execute(parts)
    del parts
    assert_close(gpu.read(*found), given)


def test_callers_on_streams_of_their_own_do_not_meet(runner: TensorRTRunner, gpu: StrictGpu) -> None:
    """Neither waits for the other, and both go through one context."""
    streams, batches, found = [gpu.new_stream(), gpu.new_stream()], [inputs(*SMALL), inputs(Grid(4, 4))], []
    for stream, given in zip(streams, batches, strict=True):
        with gpu.on(stream):
            found.append(runner.execute(tuple(map(gpu.given, given))))
    for stream, outputs, given in reversed(list(zip(streams, found, batches, strict=True))):
        with gpu.on(stream):
            assert_close(gpu.read(*outputs), given)


def test_threads_have_contexts_of_their_own(
    runner: TensorRTRunner, gpu: StrictGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are in the midst of a call at the same time, and one context is there already."""
    meet, found, batches = threading.Barrier(2), {}, [inputs(*SMALL), inputs(Grid(4, 4), Grid(1, 7))]
    runner.execute(tuple(map(gpu.given, batches[0])))

    def meeting(true: Callable[..., Any]) -> Callable[..., Any]:
        def met(*given: Any) -> Any:
            meet.wait(timeout=20)
            return true(*given)

        return met

    for name in ("readable", "copy"):  # what a queued call does with its inputs, and what a captured one
        monkeypatch.setattr(gpu, name, meeting(getattr(gpu, name)))

    def call(index: int) -> None:
        with gpu.on(gpu.new_stream()):
            outputs = runner.execute(tuple(map(gpu.given, batches[index])))
            found[index] = gpu.read(*outputs)

    in_two_threads(call)
    for index in (0, 1):
        assert_close(found[index], batches[index])


@pytest.mark.parametrize(
    "settings", [nx.EngineSettings(), nx.EngineSettings(cuda_graph=True, token_sizes=2)], ids=["queued", "captured"]
)
def test_two_devices_serve_two_threads(
    program: Program, folder: Path, world: World, settings: nx.EngineSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At one time: a thread's current device is its own, and each engine, context and tensor stays on its own."""
    gpus, cpu, meet = [StrictGpu(world), StrictGpu(world, index=1)], torch.device("cpu"), threading.Barrier(2)
    path, manifest = folder / "model.plan", manifest_of(program)
    runners = [TensorRTRunner(path, manifest, cpu, gpu, settings=settings) for gpu in gpus]
    batches, found = [inputs(*SMALL), inputs(*LARGE, tokens=24)], {}
    true = strict.Context.infer_shapes

    def met(context: strict.Context) -> list[str]:
        meet.wait(timeout=20)
        return true(context)

    monkeypatch.setattr(strict.Context, "infer_shapes", met)

    def call(index: int) -> None:
        gpu = gpus[index]
        outputs = runners[index].execute(tuple(map(gpu.given, batches[index])))
        found[index] = gpu.read(*outputs)

    in_two_threads(call)
    for index in (0, 1):
        assert_close(found[index], batches[index])
    assert world.device == 0


@queued_only
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda p, c, v: (p[:0], c[:0], v[:0]),
            r"shape \[0, 16, 48\]: expected 1 or more of batch, patches",
        ),
        (
            lambda p, c, v: (p[:, :0], c[:, :0], v[:, :0]),
            "expected 1 or more of tokens, patches",
        ),
        (lambda p, c, v: (p.double(), c, v), "patches is float64: expected float32"),
        (lambda p, c, v: (p, c.int(), v), "patch_coord is int32: expected int64"),
        (lambda p, c, v: (p, c, v.to(torch.uint8)), "patch_valid is uint8: expected bool"),
        (lambda p, c, v: (p[..., :-1], c, v), "patches has shape"),
        (lambda p, c, v: (p, c[:1], v), "patch_coord has shape|batch"),
    ],
    ids=["no-image", "no-token", "float64", "int32", "uint8", "narrow", "one-image-less"],
)
def test_what_an_engine_was_not_made_for_never_reaches_it(
    runner: TensorRTRunner, monkeypatch: pytest.MonkeyPatch, change: Callable[..., Inputs], says: str
) -> None:
    """It would read past the end of a tensor, or other numbers."""
    monkeypatch.setattr(runner, "execute", lambda given: pytest.fail("it was run"))
    with pytest.raises(nx.InputError, match=says):
        runner(*change(*inputs(*SMALL)))


@pytest.mark.parametrize("how", ["trim", "gone", "thread-ends"])
def test_contexts_outlive_their_work(runner: TensorRTRunner, gpu: StrictGpu, how: str) -> None:
    given = inputs(*SMALL)
    ready = tuple(map(gpu.given, given))
    if how == "thread-ends":
        found: list[list[Tensor]] = []
        thread = threading.Thread(target=lambda: found.append(runner.execute(ready)))
        thread.start()
        thread.join()
        outputs = found.pop()
    else:
        outputs = runner.execute(ready)
        runner.trim()
    if how == "gone":
        again = TensorRTRunner(
            runner.folder / "model.plan", runner.manifest, runner.device, gpu, settings=runner.settings
        )
        outputs = again.execute(ready)
        del again
    assert_close(gpu.read(*outputs), given)
    if how == "trim":
        assert_close(gpu.read(*runner.execute(tuple(map(gpu.given, given)))), given)


@captured_only
def test_a_graph_of_each_shape_is_captured_once_and_replayed(
    runner: TensorRTRunner, gpu: StrictGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs of the engine for a shape: one that TensorRT asks for ahead of the capture, and the captured one."""
    runs: list[int] = []
    true = strict.Context.execute_async_v3
    monkeypatch.setattr(
        strict.Context, "execute_async_v3", lambda context, handle: runs.append(handle) or true(context, handle)
    )
    batches = [inputs(*SMALL), inputs(Grid(2, 5), Grid(4, 4)), inputs(*LARGE, tokens=24), inputs(*SMALL)]
    found = [runner.execute(tuple(map(gpu.given, given))) for given in batches]
    for outputs, given in zip(found, batches, strict=True):  # the outputs of a call outlive the next one's
        assert_close(gpu.read(*outputs), given)
    assert len(runs) == 4 and len(set(runs)) == 2


@captured_only
def test_graphs_of_the_shapes_used_last_are_kept(
    runner: TensorRTRunner, gpu: StrictGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[object] = []
    true = gpu.captured
    monkeypatch.setattr(gpu, "captured", lambda *work: made.append(true(*work)) or made[-1])
    monkeypatch.setattr(runner._captured, "_most", 2)
    for tokens in (12, 13, 12, 14, 12, 13):
        given = inputs(Grid(3, 4), Grid(2, 2), tokens=tokens)
        assert_close(gpu.read(*runner.execute(tuple(map(gpu.given, given)))), given)
    assert len(made) == 4  # of 12, 13 and 14 tokens, and of 13 again, which was used longest ago when 14 came


@captured_only
def test_a_run_that_cannot_be_captured_is_an_error(
    runner: TensorRTRunner, gpu: StrictGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(work: Callable[[], None], stream: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(gpu, "captured", refused)
    with pytest.raises(nx.BackendError, match=r"cannot be captured .*is capturing\): load it without cuda_graph"):
        runner.execute(tuple(map(gpu.given, inputs(*SMALL))))


def test_it_runs_on_its_own_device_whichever_is_current(program: Program, folder: Path, world: World) -> None:
    other = StrictGpu(world, index=1)
    runner = TensorRTRunner(folder / "model.plan", manifest_of(program), torch.device("cpu"), other)
    given = inputs(*SMALL)
    assert_close(other.read(*runner.execute(tuple(map(other.given, given)))), given)
    runner.trim()
    assert world.device == 0


def test_a_shape_that_the_engine_refuses_is_an_error(program: Program, folder: Path, gpu: StrictGpu) -> None:
    """It would run with the shape of the call before."""
    larger = dataclasses.replace(manifest_of(program), buckets=(nx.Bucket(16, (1, 2, 64)), BUCKETS[1]))
    runner = TensorRTRunner(folder / "model.plan", larger, torch.device("cpu"), gpu)
    given = inputs(*SMALL)
    runner.execute(tuple(map(gpu.given, given)))
    with pytest.raises(nx.BackendError, match=r"refuses patches of shape \[9, 16, 48\] in profile 0: patches \[9, 16"):
        runner.execute(tuple(map(gpu.given, inputs(*[Grid(2, 2)] * 9))))
    assert_close(gpu.read(*runner.execute(tuple(map(gpu.given, given)))), given)


def changed(spec_dtypes: dict[str, str]) -> Callable[[Program, Path, Path], Path]:
    def write(program: Program, folder: Path, path: Path) -> Path:
        profiles = profiles_of(program)
        return write_plan(path, folder / "model.onnx", manifest_of(program), profiles, **spec_dtypes)

    return write


def with_profiles(count: int) -> Callable[[Program, Path, Path], Path]:
    def write(program: Program, folder: Path, path: Path) -> Path:
        profiles = (profiles_of(program) * 2)[:count]
        return write_plan(path, folder / "model.onnx", manifest_of(program), profiles)

    return write


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (changed({"patches": "float16"}), r"has the inputs .*'patches': 'float16'.*the manifest says .*'float32'"),
        (changed({"patch_coord": "int32"}), r"has the inputs .*'patch_coord': 'int32'"),
        (changed({"tokens": "float16"}), r"has the outputs .*'tokens': 'float16'"),
        (with_profiles(1), "has 1 profiles, and the manifest has 2 buckets"),
        (with_profiles(3), "has 3 profiles, and the manifest has 2 buckets"),
    ],
)
def test_an_engine_that_is_not_the_manifests_is_refused(
    gpu: StrictGpu, program: Program, folder: Path, write: Callable[[Program, Path, Path], Path], message: str
) -> None:
    path = write(program, folder, folder / "other.plan")
    with pytest.raises(nx.ArtifactError, match=message):
        TensorRTRunner(path, manifest_of(program), torch.device("cpu"), gpu)


def test_an_output_that_the_engine_lacks_is_an_error(gpu: StrictGpu, program: Program, folder: Path) -> None:
    fewer = dataclasses.replace(manifest_of(program), outputs=program.outputs[:1])
    with pytest.raises(nx.ArtifactError, match=r"has the outputs .*'tokens'.* the manifest says \{'features'"):
        TensorRTRunner(folder / "model.plan", fewer, torch.device("cpu"), gpu)


def test_a_file_that_is_no_engine_says_why(gpu: StrictGpu, program: Program, tmp_path: Path) -> None:
    (tmp_path / "model.plan").write_bytes(b"nothing\n")
    with pytest.raises(
        nx.BackendError, match=r"cannot load an engine built by 10\.13 for .* 9\.0: the plan's magic tag does not match"
    ):
        TensorRTRunner(tmp_path / "model.plan", manifest_of(program), torch.device("cpu"), gpu)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("set_optimization_profile_async", "TensorRT refuses profile 0: the engine and its manifest disagree"),
        ("set_tensor_address", "TensorRT refuses the address of patches: no luck"),
        ("execute_async_v3", "TensorRT refused to run the engine: no luck"),
    ],
)
def test_every_refusal_is_an_error(
    runner: TensorRTRunner, gpu: StrictGpu, step: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: strict.Context, *given: Any) -> bool:
        return self._refuse("no luck")

    monkeypatch.setattr(strict.Context, step, refuse)
    with pytest.raises(nx.BackendError, match=message):
        runner.execute(tuple(map(gpu.given, inputs(*SMALL))))


def test_the_log_keeps_nothing_that_nobody_asked_for(runner: TensorRTRunner) -> None:
    log = runner._log
    log.log(strict.ILogger.WARNING, "before")
    with log.recording() as outer, log.recording() as inner:
        log.log(strict.ILogger.ERROR, "within")
        log.log(strict.ILogger.INFO, "a detail")
    assert outer == inner == [("error", "within")]
    assert not log.recordings


def test_the_library_that_built_an_engine_is_the_one_that_runs_it(
    program: Program, folder: Path, world: World, gpu: StrictGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever else is installed; the other one could not load it."""
    path, cpu = folder / "model.plan", torch.device("cpu")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", strict.library(world, "tensorrt_rtx"))
    for library in ("tensorrt", "tensorrt_rtx"):
        runner = TensorRTRunner(path, manifest_of(program, library), cpu, gpu)
        given = inputs(*SMALL)
        assert_close(gpu.read(*runner.execute(tuple(map(gpu.given, given)))), given)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(nx.BackendError, match=r"built with tensorrt_rtx, and no other .*: pip install tensorrt-rtx"):
        TensorRTRunner(path, manifest_of(program, "tensorrt_rtx"), cpu, gpu)
    with pytest.raises(nx.ArtifactError, match="built with 'os': this release knows tensorrt, tensorrt_rtx"):
        TensorRTRunner(path, manifest_of(program, "os"), cpu, gpu)


def test_an_engine_is_refused_where_it_cannot_run(program: Program, folder: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(nx.BackendError, match="an engine runs on a GPU, and device 'cpu' was asked for"):
        tensorrt_runner.open(folder, manifest_of(program), torch.device("cpu"))


@queued_only
def test_contexts_have_the_memory_of_the_shapes_in_hand_and_none_between_calls(
    runner: TensorRTRunner, gpu: StrictGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By themselves they would hold what the largest profile takes."""
    given: list[tuple[int, int]] = []
    true = strict.Context.set_device_memory

    def heard(context: strict.Context, memory: int, size: int) -> None:
        given.append((size, context.wanted or 0))
        true(context, memory, size)

    monkeypatch.setattr(strict.Context, "set_device_memory", heard)
    for grids, tokens in ((SMALL, 16), (LARGE, 24), (SMALL, 16)):
        batch = inputs(*grids, tokens=tokens)
        assert_close(gpu.read(*runner.execute(tuple(map(gpu.given, batch)))), batch)
    assert [size for size, _ in given] == [wanted for _, wanted in given]
    assert given[0] == given[2] and given[0][0] < given[1][0]
    del batch
    assert all(block.reusable_after is not None for block in gpu.world.blocks if block.size in dict(given))


Load = Callable[[nx.EngineSettings | None], TensorRTRunner]


@pytest.fixture
def rtx(program: Program, folder: Path, gpu: StrictGpu, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Return what loads an engine of TensorRT for RTX."""
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", strict.library(gpu.world, "tensorrt_rtx"))
    manifest = manifest_of(program, "tensorrt_rtx")
    return lambda settings: TensorRTRunner(folder / "model.plan", manifest, torch.device("cpu"), gpu, settings=settings)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (None, ("NONE", "DISABLED")),
        (nx.EngineSettings("eager", cuda_graph=True), ("EAGER", "WHOLE_GRAPH_CAPTURE")),
        (nx.EngineSettings("lazy"), ("LAZY", "DISABLED")),
    ],
    ids=["default", "eager", "lazy"],
)
def test_how_rtx_specializes_is_said(
    rtx: Load,
    gpu: StrictGpu,
    settings: nx.EngineSettings | None,
    expected: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[strict.Context] = []
    true = strict.Engine.create_execution_context
    monkeypatch.setattr(
        strict.Engine, "create_execution_context", lambda engine, *by: made.append(true(engine, *by)) or made[-1]
    )
    runner, given = rtx(settings), inputs(*SMALL)
    assert_close(gpu.read(*runner.execute(tuple(map(gpu.given, given)))), given)
    (context,) = made
    assert context.config is not None and context.strategy.name == "USER_MANAGED"
    found = context.config.dynamic_shapes_kernel_specialization_strategy, context.config.cuda_graph_strategy
    assert tuple(one.name for one in found) == expected and context.config.cache is None
    with pytest.raises(nx.RequestError, match="there is no runtime cache to save"):
        runner.save_runtime_cache()


def test_a_runtime_cache_is_kept_where_the_user_says(rtx: Load, tmp_path: Path) -> None:
    cache = tmp_path / "kernels.bin"

    def load() -> TensorRTRunner:
        return rtx(nx.EngineSettings("eager", runtime_cache=cache))

    first = load()
    assert not cache.exists()
    first.save_runtime_cache()
    assert cache.read_bytes() == b"kernels" and [path.name for path in tmp_path.iterdir()] == ["kernels.bin"]
    cache.write_bytes(b"kernels of before")
    assert load()._maker._cache.content == b"kernels of before"
    cache.write_bytes(b"of another GPU")  # refused by the library, and written anew
    other = load()
    other.save_runtime_cache()
    assert cache.read_bytes() == b"kernels"


def test_a_runtime_cache_is_refused_where_it_cannot_be_kept(
    rtx: Load, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, and not when it is written; in the artifact's folder it would keep that from being loaded again."""
    for path in (folder / "kernels.bin", folder / "gate" / ".." / "kernels.bin"):
        with pytest.raises(nx.RequestError, match="is in the artifact's folder, which holds nothing that its manifest"):
            rtx(nx.EngineSettings(runtime_cache=path))
    for path in (tmp_path, tmp_path / "none" / "kernels.bin"):
        with pytest.raises(nx.RequestError, match="cannot be written: expected a file in a folder that exists"):
            rtx(nx.EngineSettings(runtime_cache=path))
    monkeypatch.chdir(tmp_path)
    rtx(nx.EngineSettings(runtime_cache="kernels.bin")).save_runtime_cache()
    assert (tmp_path / "kernels.bin").is_file()


def test_settings_are_refused_where_nothing_heeds_them(program: Program, folder: Path, gpu: StrictGpu) -> None:
    with pytest.raises(nx.RequestError, match="specialization 'now' is not known: expected one of none, eager, lazy"):
        nx.EngineSettings("now")
    for wrong, says in (
        ({"token_sizes": "4"}, "token_sizes '4' is not possible: expected 0, or how many"),
        ({"token_sizes": 2.5}, "token_sizes 2.5 is not possible"),
        ({"token_sizes": True}, "token_sizes True is not possible"),
        ({"cuda_graph": "no"}, "cuda_graph 'no' is not possible: expected True or False"),
        ({"runtime_cache": b"cache"}, "runtime_cache b'cache' is not possible: expected the path of a file"),
        ({"runtime_cache": ""}, "runtime_cache '' is not possible"),
    ):
        with pytest.raises(nx.RequestError, match=says):
            nx.EngineSettings(**wrong)
    with pytest.raises(nx.RequestError, match="is of TensorRT for RTX, and this engine was built with tensorrt"):
        TensorRTRunner(
            folder / "model.plan",
            manifest_of(program),
            torch.device("cpu"),
            gpu,
            settings=nx.EngineSettings("eager", cuda_graph=True),
        )


@pytest.mark.parametrize(
    ("tokens", "budget", "expected"),
    [(1, 256, 64), (64, 256, 64), (65, 256, 128), (250, 256, 256), (256, 256, 256), (5, 10, 5), (6, 10, 8), (3, 3, 3)],
)
def test_tokens_are_padded_to_equal_steps(tokens: int, budget: int, expected: int) -> None:
    assert nx.EngineSettings(token_sizes=4).padded_tokens(tokens, budget) == expected
    assert nx.EngineSettings().padded_tokens(tokens, budget) == tokens


def test_an_engine_sees_few_numbers_of_tokens(
    program: Program, folder: Path, gpu: StrictGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And callers what they would without: tokens that were added are gone from the outputs."""
    settings, seen = nx.EngineSettings(token_sizes=2), set()
    true = strict.Context.set_input_shape

    def heard(context: strict.Context, name: str, shape: tuple[int, ...]) -> bool:
        seen.add(shape[1])
        return true(context, name, shape)

    monkeypatch.setattr(strict.Context, "set_input_shape", heard)
    runner = TensorRTRunner(folder / "model.plan", manifest_of(program), torch.device("cpu"), gpu, settings=settings)
    for tokens in (1, 5, 8, 13, 16, 17, 24):
        given = inputs(Grid(1, min(tokens, 9)), Grid(1, 1), tokens=tokens)
        assert_close(gpu.read(*runner.execute(tuple(map(gpu.given, given)))), given)
    assert seen == {8, 16, 24}
    with pytest.raises(nx.RequestError, match="token_sizes -1 is not possible: expected 0, or how many"):
        nx.EngineSettings(token_sizes=-1)


def test_torchs_own_memory_is_padded_with_zeros() -> None:
    given = torch.arange(1.0, 13.0).view(2, 3, 2)
    made = Gpu(torch.device("cpu")).padded(given, 1, 5)
    assert torch.equal(made[:, :3], given) and not made[:, 3:].any() and made.shape == (2, 5, 2)


def test_rtx_has_no_kernels_for_hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reason to skip, and not a failure of a kernel."""
    for capability, says in (((9, 0), "no kernels for a GPU of compute capability 9.0 (it knows 7.5, "), ((8, 9), "")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None, found=capability: found)
        assert says in why_not_on("tensorrt_rtx") and bool(says) == bool(why_not_on("tensorrt_rtx"))
        assert not why_not_on("tensorrt")


def test_torchs_own_memory_is_taken_as_it_is_or_copied() -> None:
    """What the stand-in replaces, as far as it runs on a CPU."""
    gpu, values = Gpu(torch.device("cpu")), torch.arange(4096.0)
    aligned = values[-values.data_ptr() % 256 // 4 :]
    assert gpu.readable(aligned) is aligned
    for part in (aligned[1:], aligned[::2], aligned[:64].view(8, 8).T):
        copy = gpu.readable(part)
        assert torch.equal(copy, part) and copy.is_contiguous() and copy.dtype == part.dtype
        assert copy.untyped_storage().data_ptr() != part.untyped_storage().data_ptr()


def test_the_stand_in_has_no_name_that_tensorrt_has_not() -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    for stand_in, true in ((strict.Context, trt.IExecutionContext), (strict.Engine, trt.ICudaEngine)):
        names = {name for name in vars(stand_in) if not name.startswith("_")}
        assert names and names <= set(dir(true))
    assert {"num_io_tensors", "num_optimization_profiles"} <= set(dir(trt.ICudaEngine))
    config, cache = strict.RuntimeConfig(), strict.RuntimeCache()
    assert {name for name in dir(config) if name[0] != "_"} - {"allocation", "cache"} <= set(dir(trt.IRuntimeConfig))
    assert {name for name in dir(cache) if name[0] != "_"} - {"content"} <= set(dir(trt.IRuntimeCache))
    for kind in (
        "ExecutionContextAllocationStrategy",
        "DynamicShapesKernelSpecializationStrategy",
        "CudaGraphStrategy",
    ):
        assert set(getattr(strict, kind).__members__) == set(getattr(trt, kind).__members__)
    for stand_in, true in ((strict.Context, trt.IExecutionContext), (strict.RuntimeCache, trt.IRuntimeCache)):
        for name in ("set_device_memory", "update_device_memory_size_for_shapes", "deserialize", "serialize"):
            if hasattr(stand_in, name):
                taken = len(inspect.signature(getattr(stand_in, name)).parameters)
                assert (getattr(true, name).__doc__ or "").split(")")[0].count(": ") == taken
    assert {kind.name for kind in strict.DataType} <= set(trt.DataType.__members__)
    assert {mode.name for mode in strict.TensorIOMode} == set(trt.TensorIOMode.__members__)
