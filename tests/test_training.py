"""Training with `vectorize` and `compile`: the same gradients, losses and checkpoints as eager."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm.data
import timm.optim
import tiny
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from PIL import Image
from reference import float64_model
from safetensors.torch import load_file, save_file
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.parallel import DistributedDataParallel

import naflex_export as nx
from naflex_export.batch import Batch, noise_batch
from naflex_export.grid import Grid

Options = dict[str, Any]

GRIDS = (Grid(3, 7), Grid(1, 24), Grid(24, 1), Grid(4, 4), Grid(1, 1), Grid(5, 6), Grid(6, 6))
BATCH = noise_batch("training", GRIDS, tokens=40, token_width=48)

LEARNED: dict[str, Options] = {
    "learned-aa": {},
    "learned-noaa": {"pos_embed_antialias": False},
    "learned-ac-par-g5x6": {
        "pos_embed_antialias": False,
        "pos_embed_align_corners": True,
        "pos_embed_ar_preserving": True,
        "pos_embed_grid_size": (5, 6),
    },
    "learned-bilinear-aa": {"pos_embed_interp_mode": "bilinear"},
    "learned-aa-g40x36": {"pos_embed_grid_size": (40, 36)},
    "sampled": {"pos_embed_use_grid_sample": True},
    "factorized": {"pos_embed": "factorized"},
    "factorized-par": {"pos_embed": "factorized", "pos_embed_ar_preserving": True},
}
ROPE: dict[str, Options] = {
    "rope-axial": {"rope_type": "axial", "rope_ref_feat_shape": (5, 7)},
    "rope-mixed": {"rope_type": "mixed"},
    "rope-dinov3": {"rope_type": "dinov3", "pos_embed": "none", "rope_rotate_half": True},
    "rope-mrope": {"rope_type": "mrope", "rope_mrope_section": (2, 3, 3)},
}
AUGMENTED: Options = {"rope_shift_coords": 0.7, "rope_jitter_coords": 1.5, "rope_rescale_coords": 2.0}
RANDOM: dict[str, Options] = {
    "patch-dropout": {"patch_drop_rate": 0.4},
    "patch-dropout-key-only": {"patch_drop_rate": 0.4, "use_key_only_attn_mask": True, "class_token": True},
    "dropout-drop-path": {"proj_drop_rate": 0.2, "pos_drop_rate": 0.1, "drop_path_rate": 0.3},
    "rope-mixed-augmented": {**ROPE["rope-mixed"], **AUGMENTED, "patch_drop_rate": 0.4},
    "rope-axial-augmented": {**ROPE["rope-axial"], **AUGMENTED, "patch_drop_rate": 0.4},
}
FEW = {"learned-aa": {}, "factorized": LEARNED["factorized"], "rope-mixed": ROPE["rope-mixed"]}


def cases(options: dict[str, Options]) -> Any:
    return pytest.mark.parametrize("options", [pytest.param(value, id=name) for name, value in options.items()])


def trainee(**options: Any) -> nn.Module:
    """Return a tiny classifier in train mode; without a bias on the keys, whose gradient is rounding noise."""
    usual = {"num_classes": 5, "reg_tokens": 1, "qkv_bias": False}
    return tiny.naflexvit("naflexvit_base_patch16_gap", **{**usual, **options}).train()


def call(model: nn.Module, batch: Batch, dtype: torch.dtype = torch.float32) -> Tensor:
    return model(batch.patches.to(dtype), batch.patch_coord, batch.patch_valid)


def step(model: nn.Module, batch: Batch = BATCH, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Return, by name, the outputs and the gradient of every parameter, from a fixed seed."""
    model.zero_grad()
    torch.manual_seed(3)
    output = call(model, batch, dtype)
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(5))
    (output * weight.to(dtype)).sum().backward()
    return {"outputs": output.detach(), **gradients(model)}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of every parameter's gradient, under the model's own names."""
    found = {name.removeprefix("model."): parameter.grad for name, parameter in model.named_parameters()}
    return {name: torch.zeros(1) if gradient is None else gradient.clone() for name, gradient in found.items()}


def worst(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Return the largest difference of any tensor, as a share of that tensor's largest value."""
    assert found.keys() == expected.keys()
    assert all(tensor.any() for tensor in expected.values()), "a tensor of zeros judges nothing"
    return max(float((found[name] - expected[name]).abs().max() / expected[name].abs().max()) for name in expected)


# Float64


@cases(LEARNED)
def test_a_float64_model_equals_a_float64_loop(options: Options) -> None:
    """Outputs and every parameter's gradient to 1e-6, though the resize itself is float32 here as it is in timm."""
    eager = trainee(**options).double()
    expected = step(float64_model(eager, GRIDS), dtype=torch.float64)
    assert worst(step(nx.vectorize(copy.deepcopy(eager)), dtype=torch.float64), expected) <= 1e-6
    # A resize to a grid one patch larger is not the same: the comparison can fail.
    larger = [Grid(grid.height + 1, grid.width + 1) for grid in GRIDS]
    assert worst(step(float64_model(eager, GRIDS, resized_to=larger), dtype=torch.float64), expected) > 1e-3


@cases(ROPE)
def test_a_float64_model_with_rope_equals_eager(options: Options) -> None:
    eager = trainee(**options).double()
    fast = nx.vectorize(copy.deepcopy(eager))
    assert worst(step(fast, dtype=torch.float64), step(eager, dtype=torch.float64)) <= 1e-6


# Randomness, checkpointing, autocast, compilation


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointed"])
@cases(RANDOM)
def test_the_same_seed_gives_eagers_gradients(options: Options, checkpointing: bool) -> None:
    eager = trainee(**options)
    eager.set_grad_checkpointing(checkpointing)
    expected = step(eager)
    assert worst(step(nx.vectorize(copy.deepcopy(eager))), expected) <= 1e-5
    eager.zero_grad()
    call(eager, BATCH).sum().backward()
    assert worst(gradients(eager), {name: expected[name] for name in gradients(eager)}) > 1e-2  # another draw


def test_augmentation_of_shared_grids_moves_the_generator_further() -> None:
    """What docs/training.md says differs: the transforms are eager's, the dropout after them is not."""
    shared = noise_batch("shared", (Grid(3, 4),) * 3, tokens=12, token_width=48)
    for drop, same in ((0.0, True), (0.4, False)):
        eager = trainee(**ROPE["rope-axial"], **AUGMENTED, patch_drop_rate=drop)
        found = worst(step(nx.vectorize(copy.deepcopy(eager)), shared), step(eager, shared))
        assert (found <= 1e-5) == same


@cases({**FEW, "learned-noaa": LEARNED["learned-noaa"], "rope-axial": ROPE["rope-axial"]})
def test_under_autocast_no_further_from_float32_than_eager(options: Options) -> None:
    """At most twice eager's own error in bfloat16, in the outputs and over all gradients."""
    eager = trainee(**options)
    exact = step(eager)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        theirs, ours = step(eager), step(nx.vectorize(copy.deepcopy(eager)))

    def error(found: dict[str, Tensor]) -> float:
        squares = [float((found[name].float() - exact[name]).square().sum()) for name in exact]
        return sum(squares) ** 0.5 / sum(float(tensor.square().sum()) for tensor in exact.values()) ** 0.5

    assert ours["outputs"].dtype == theirs["outputs"].dtype == torch.bfloat16
    assert 1e-4 < error(theirs) < 0.1
    assert error(ours) <= 2 * error(theirs)
    assert error({name: 0.5 * tensor for name, tensor in theirs.items()}) > 2 * error(theirs)


@pytest.mark.parametrize(
    ("options", "checkpointing"),
    [
        pytest.param(FEW["factorized"], False, id="factorized"),
        pytest.param(RANDOM["patch-dropout"], True, id="patch-dropout-checkpointed", marks=pytest.mark.full),
        pytest.param(RANDOM["rope-mixed-augmented"], False, id="rope-mixed-augmented", marks=pytest.mark.full),
        pytest.param(
            RANDOM["rope-mixed-augmented"], True, id="rope-mixed-augmented-checkpointed", marks=pytest.mark.full
        ),
    ],
)
def test_compiled_gradients_equal_eager(options: Options, checkpointing: bool) -> None:
    """One graph, forward and backward, for several sizes; `aot_eager` draws what eager draws."""
    eager = trainee(depth=1, **options)
    eager.set_grad_checkpointing(checkpointing)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = nx.compile(copy.deepcopy(eager), backend=counter)
    for batch in (BATCH, noise_batch("few", GRIDS[:3], tokens=25, token_width=48)):
        expected = step(eager, batch)
        assert worst(step(compiled, batch), expected) <= 1e-5
    assert counter.frame_count == 1


def test_50_random_batches_train_in_two_graphs() -> None:
    """A batch of one has a graph of its own; accumulated gradients are eager's."""
    eager = trainee(depth=1, patch_drop_rate=0.25)
    counter = CompileCounterWithBackend("eager")
    compiled = nx.compile(copy.deepcopy(eager), backend=counter)
    draw = random.Random(0)
    for index in range(50):
        tokens = draw.choice([5, 16, 31, 40])  # of which dropout keeps more than one, a size torch specializes
        heights = [draw.randint(1, tokens) for _ in range(draw.choice([1, 2, 3, 5]))]
        grids = [Grid(height, draw.randint(1, tokens // height)) for height in heights]
        batch = noise_batch(f"random-{index}", grids, tokens, 48)
        for model in (eager, compiled):
            torch.manual_seed(index)
            call(model, batch).square().sum().backward()
    assert worst(gradients(compiled), gradients(eager)) <= 1e-5
    assert counter.frame_count == 2


def test_a_larger_compiled_function_takes_it_in() -> None:
    eager = trainee(depth=1)
    fast = nx.compile(eager, backend="eager")
    outer = torch.compile(lambda batch: call(fast, batch).square().mean(), backend="eager", fullgraph=True)
    expected = call(eager, BATCH).square().mean()
    assert worst({"loss": outer(BATCH).detach()}, {"loss": expected.detach()}) <= 1e-5


@pytest.mark.parametrize("backend", ["aot_eager_decomp_partition", pytest.param("inductor", marks=pytest.mark.full)])
def test_a_compiled_model_trains_under_autocast_with_checkpoints(backend: str) -> None:
    """The first backend decomposes and partitions as inductor does, and runs what comes of it as it is."""
    eager = trainee(depth=1)
    eager.set_grad_checkpointing()
    exact = step(eager)
    compiled = nx.compile(copy.deepcopy(eager), backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        theirs, ours = step(eager), step(compiled)
    assert worst(ours, exact) <= 2 * worst(theirs, exact)


# timm's loader

# timm opens a picture and leaves closing it to the garbage collector.
UNCLOSED = pytest.mark.filterwarnings(r"ignore:unclosed file .*\.png:ResourceWarning")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 pictures in three folders, of aspect ratios from 1:4 to 4:1; the classes differ in colour."""
    root = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(0)
    sizes = [(16, 64), (24, 40), (32, 32), (40, 24), (64, 16), (20, 28)]
    for label in range(3):
        (root / f"class{label}").mkdir()
        for index in range(12):
            pixels = draw.integers(0, 160, size=(*sizes[index % 6], 3), dtype=np.uint8)
            pixels[..., label] += 90
            Image.fromarray(pixels).save(root / f"class{label}" / f"{index}.png")
    return root


def batches(pictures: Path, epochs: int) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """Yield what timm's training loader does: augmented, in random order, 16 or 36 tokens a picture."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    loader = timm.data.create_naflex_loader(
        timm.data.create_dataset("", root=str(pictures)),
        patch_size=4,
        train_seq_lens=(16, 36),
        batch_size=8,
        is_training=True,
        num_workers=0,
        pin_memory=False,
        device=torch.device("cpu"),
    )
    for epoch in range(epochs):
        loader.dataset.set_epoch(epoch)
        yield from loader


def losses(model: nn.Module, pictures: Path, epochs: int = 6) -> list[float]:
    """Return the loss at each step of a training as timm's script has it."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    curve = []
    for inputs, target in batches(pictures, epochs):
        loss = F.cross_entropy(model(inputs), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append(loss.item())
    return curve


def farthest(found: Sequence[float], expected: Sequence[float]) -> float:
    assert len(found) == len(expected)
    return max(abs(one - other) for one, other in zip(found, expected, strict=True))


@UNCLOSED
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        pytest.param("vectorized", {"patch_drop_rate": 0.2}, id="learned-aa-patch-dropout"),
        pytest.param("vectorized", LEARNED["factorized"], id="factorized"),
        pytest.param("vectorized", ROPE["rope-mixed"], id="rope-mixed"),
        pytest.param("compiled", {"depth": 1, "patch_drop_rate": 0.2}, id="compiled"),
    ],
)
def test_timms_loader_loop_has_eagers_losses(kind: str, options: Options, pictures: Path) -> None:
    eager = trainee(num_classes=3, **options)
    fast, wrong = made(kind, copy.deepcopy(eager)), nx.vectorize(copy.deepcopy(eager))
    wrong.embeds.pos_embed_ar_preserving = True
    expected = losses(eager, pictures)
    assert len(expected) == 18 and sum(expected[-3:]) < sum(expected[:3])
    assert farthest(losses(fast, pictures), expected) <= 1e-4
    assert farthest(losses(wrong, pictures), expected) > 1e-3


# Checkpoints


@pytest.mark.parametrize("form", ["state_dict", "safetensors", "torch.save"])
@pytest.mark.parametrize("into", ["eager", "vectorized", "compiled"])
@pytest.mark.parametrize("out_of", ["eager", "vectorized", "compiled"])
def test_a_checkpoint_of_either_loads_into_the_other(out_of: str, into: str, form: str, tmp_path: Path) -> None:
    one, other = trainee(**ROPE["rope-mixed"]), trainee(**ROPE["rope-mixed"])
    source, target = made(out_of, one), made(into, other)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.mul_(0.75)
        expected = call(one, BATCH)
        assert not torch.equal(call(other, BATCH), expected)
    state = source.state_dict()
    if form == "safetensors":
        save_file(state, tmp_path / "model.safetensors")
        state = load_file(tmp_path / "model.safetensors")
    elif form == "torch.save":
        torch.save(state, tmp_path / "model.pth")
        state = torch.load(tmp_path / "model.pth", weights_only=True)
    assert str(target.load_state_dict(state, strict=True)) == "<All keys matched successfully>"
    loaded = target.state_dict()
    assert list(loaded) == list(source.state_dict())
    assert all(torch.equal(loaded[name], tensor) for name, tensor in source.state_dict().items())
    with torch.no_grad():
        assert torch.equal(call(other, BATCH), expected)


def made(kind: str, model: nn.Module, backend: str = "aot_eager") -> nn.Module:
    if kind == "compiled":
        return nx.compile(model, backend=backend)
    return nx.vectorize(model) if kind == "vectorized" else model


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *(pytest.param("vectorized", options, id=f"vectorized-{name}") for name, options in FEW.items()),
        pytest.param("compiled", {"depth": 1}, id="compiled", marks=pytest.mark.full),
    ],
)
def test_a_saved_module_trains_on(kind: str, options: Options, tmp_path: Path) -> None:
    """The whole module, with `torch.save`; and what a deep copy of it learns is its own."""
    fast = made(kind, trainee(**options))
    expected = step(fast)
    torch.save(fast, tmp_path / "module.pth")
    loaded = torch.load(tmp_path / "module.pth", weights_only=False)
    twin = copy.deepcopy(fast)
    for other in (loaded, twin):
        assert type(other) is type(fast) and other.training
        with torch.no_grad():
            for parameter in fast.parameters():
                parameter.add_(1.0)
        assert worst(step(other), expected) == 0
    assert worst(step(fast), expected) > 1e-2


@UNCLOSED
def test_training_resumes_across_the_two(pictures: Path) -> None:
    """Six steps of eager are three of eager and, from its checkpoint and its optimizer's, three of the vectorized."""
    data = [batch for batch, _ in zip(batches(pictures, 3), range(6), strict=False)]
    whole = trainee(num_classes=3)
    first, second = copy.deepcopy(whole), nx.vectorize(trainee(num_classes=3))

    def train(model: nn.Module, part: slice, state: dict[str, Any] | None = None) -> dict[str, Any]:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        if state is not None:
            optimizer.load_state_dict(state)
        for inputs, target in data[part]:
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), target).backward()
            optimizer.step()
        return optimizer.state_dict()

    train(whole, slice(0, 6))
    state = train(first, slice(0, 3))
    assert worst(first.state_dict(), whole.state_dict()) > 1e-3
    second.load_state_dict(first.state_dict())
    train(second, slice(3, 6), state)
    assert worst(second.state_dict(), whole.state_dict()) <= 1e-4


def test_timms_optimizer_decays_the_same_parameters() -> None:
    """Some are spared by name in timm, the position embedding among them; a compiled model has the model's names."""
    eager = trainee()
    compiled = nx.compile(eager, backend="eager")

    def decayed(model: nn.Module) -> list[bool]:
        groups = timm.optim.create_optimizer_v2(model, opt="adamw", weight_decay=0.05).param_groups
        decay = {id(parameter): group["weight_decay"] > 0 for group in groups for parameter in group["params"]}
        return [decay[id(parameter)] for parameter in eager.parameters()]

    expected = decayed(eager)
    assert decayed(nx.vectorize(eager)) == decayed(compiled.model) == decayed(compiled) == expected
    assert True in expected and False in expected


def test_timms_moving_average_follows() -> None:
    eager = trainee(class_token=True)
    fast = nx.vectorize(copy.deepcopy(eager))
    averages = []
    for model in (eager, fast):
        average = ModelEmaV3(model, decay=0.5)
        with torch.no_grad():
            model.embeds.pos_embed.mul_(3.0)
            average.update(model)
            averages.append({"outputs": call(average.module, BATCH), "raw": call(model, BATCH)})
    assert worst(averages[1], averages[0]) <= 1e-5
    assert worst({"raw": averages[0]["outputs"]}, {"raw": averages[0]["raw"]}) > 1e-2


# Several processes

DISTRIBUTED: dict[str, tuple[str, Options]] = {
    "vectorized": ("vectorized", {}),
    "vectorized-rope-mixed": ("vectorized", {**ROPE["rope-mixed"], "pos_embed": "factorized"}),
    "compiled": ("compiled", {"depth": 1}),
}
HALVES = (
    noise_batch("rank0", GRIDS[:3], tokens=30, token_width=48),
    noise_batch("rank1", GRIDS[3:6], tokens=40, token_width=48),
)


def run_rank(rank: int, folder: Path) -> None:
    """Take a step on one half of the data, in a process of its own, and save the gradients."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    found = {}
    for name, (kind, options) in DISTRIBUTED.items():
        model = DistributedDataParallel(made(kind, trainee(**options), backend="eager"))
        for _ in range(2):  # a parameter without a gradient is an error of the second forward
            model.zero_grad()
            mean_loss(model, HALVES[rank]).backward()
        state = {key: tensor + 1 for key, tensor in model.state_dict().items()}
        model.load_state_dict(state)
        found[name] = {"gradients": gradients(model.module), "state": model.module.state_dict()}
    torch.save(found, folder / f"rank{rank}.pth")
    dist.barrier()
    dist.destroy_process_group()


def pad_tokens(batch: Batch, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    pad = (0, tokens - batch.patch_valid.shape[1])
    return F.pad(batch.patches, (0, 0, *pad)), F.pad(batch.patch_coord, (0, 0, *pad)), F.pad(batch.patch_valid, pad)


def mean_loss(model: nn.Module, batch: Batch) -> Tensor:
    weight = torch.randn(5, generator=torch.Generator().manual_seed(5))
    return (call(model, batch) * weight).sum(dim=1).square().mean()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found; starting them is most of the time."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(run_rank, args=(folder,), nprocs=2)
    return [torch.load(folder / f"rank{rank}.pth") for rank in range(2)]


@pytest.mark.full
@pytest.mark.parametrize("name", DISTRIBUTED)
def test_two_processes_have_the_gradients_of_one(name: str, ranks: list[dict[str, Any]]) -> None:
    """Each rank's batch is half of the union, so the mean of the two gradients is the union's."""
    eager = trainee(**DISTRIBUTED[name][1])
    state = {key: tensor + 1 for key, tensor in eager.state_dict().items()}
    padded = [pad_tokens(half, 40) for half in HALVES]
    union = Batch("union", *(torch.cat(parts) for parts in zip(*padded, strict=True)), GRIDS[:6])
    mean_loss(eager, union).backward()
    expected = gradients(eager)
    for rank in ranks:
        assert worst(rank[name]["gradients"], expected) <= 1e-5
        assert worst(rank[name]["state"], state) == 0
    eager.zero_grad()
    mean_loss(eager, HALVES[0]).backward()
    assert worst(gradients(eager), expected) > 1e-2  # half of the data is not enough
