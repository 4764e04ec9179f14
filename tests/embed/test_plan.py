"""Planned buckets against every possible choice of buckets, and what a plan says of itself."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import pytest

import naflex_export as nx
from naflex_export.embed.plan import plan, plans_up_to, token_counts, worthwhile

COSTS: dict[str, Callable[[int], float]] = {
    "tokens": lambda tokens: tokens,
    "attention": lambda tokens: tokens + tokens**2 / 8,
    "steps": lambda tokens: 8 * -(-tokens // 8),
    "nothing": lambda tokens: 0,
}


def cost_with(chosen: tuple[int, ...], counts: dict[int, int], cost: Callable[[int], float]) -> float:
    """Return what all images cost, each padded to the smallest of the chosen budgets that holds it."""
    return sum(
        images * cost(min(end for end in chosen if end >= tokens)) for tokens, images in counts.items() if images
    )


def cheapest(counts: dict[int, int], k: int, tokens: int, cost: Callable[[int], float]) -> tuple[float, int]:
    """Return the lowest cost of any at most `k` budgets up to `tokens`, and the fewest budgets that reach it."""
    choices = [(*smaller, tokens) for count in range(k) for smaller in itertools.combinations(range(1, tokens), count)]
    return min((cost_with(chosen, counts, cost), len(chosen)) for chosen in choices)


@pytest.mark.parametrize("name", COSTS)
def test_a_plan_costs_what_the_best_of_all_choices_costs(name: str) -> None:
    cost = COSTS[name]
    for seed in range(60):
        draw = random.Random(f"{name} {seed}")
        tokens, k = draw.randint(1, 12), draw.randint(1, 4)
        counts = {n: draw.choice([1, 1, 2, 5, 50]) for n in draw.sample(range(1, tokens + 1), draw.randint(1, tokens))}
        found = plan(counts, k, tokens, cost)
        least, fewest = cheapest(counts, k, tokens, cost)
        budgets = tuple(bucket.tokens for bucket in found.buckets)
        assert found.cost == pytest.approx(least, rel=1e-12)
        assert len(budgets) == fewest and budgets[-1] == tokens and list(budgets) == sorted(set(budgets))
        assert cost_with(budgets, counts, cost) == pytest.approx(found.cost, rel=1e-12)
        assert sum(found.images) == sum(counts.values())
        assert found.valid == sum(n * images for n, images in counts.items())
        assert found.padded == cost_with(budgets, counts, COSTS["tokens"])


def test_waste_is_the_share_of_padding() -> None:
    found = plan({4: 3, 10: 1}, 1, tokens=16)
    assert (found.valid, found.padded) == (22, 64) and found.waste == 1 - 22 / 64
    assert found.buckets == (nx.Bucket(16),) and found.images == (4,)


def test_buckets_of_sizes_serve_every_image_of_the_budget() -> None:
    small = [(64, 64)] * 50 + [(320, 200)] * 30
    buckets = nx.plan_buckets(small, k=3, tokens=256, upscale=False, batch=(1, 4, 16))
    assert [str(bucket) for bucket in buckets] == ["16:1,4,16", "240:1,4,16", "256:1,4,16"]


def test_tokens_are_those_of_the_size_rule() -> None:
    sizes = [(64, 64), (480, 640), (64, 64)]
    assert token_counts(sizes, 256) == {252: 1, 256: 2}
    assert token_counts(sizes, 256, upscale=False) == {16: 2, 252: 1}
    assert token_counts(sizes, 256, upscale=False, patch_size=32) == {4: 2, 252: 1}


@pytest.mark.parametrize("size", [(0, 5), (3.5, 2.0), (1, 2, 3), 5, "ab", (True, True), None], ids=str)
def test_what_is_no_size_is_refused(size: object) -> None:
    with pytest.raises(nx.RequestError, match=r"expected the \(height, width\) of an image in pixels"):
        nx.plan_buckets([(4, 4), size])  # type: ignore[list-item]


def test_plans_end_where_more_buckets_save_nothing() -> None:
    plans = plans_up_to({4: 10, 16: 10}, 6, tokens=16)
    assert [len(found.buckets) for found in plans] == [1, 2]
    assert worthwhile(plans) is plans[1] and worthwhile(plans, k=1) is plans[0]
    small_steps = plans_up_to({4: 50, 15: 10, 16: 10}, 6, tokens=16)
    assert len(small_steps) == 3 and worthwhile(small_steps) is small_steps[1]
    filled = plans_up_to({252: 10, 255: 40, 256: 50}, 6, tokens=256)
    assert len(filled) == 3 and worthwhile(filled) is filled[0]


def test_arguments_are_checked() -> None:
    for k in (0, -1, 2.5, "2"):
        with pytest.raises(nx.RequestError, match=f"k={k!r}: expected an integer of at least 1"):
            nx.plan_buckets([(1, 1)], k=k)  # type: ignore[arg-type]
    with pytest.raises(nx.RequestError, match="no size was given"):
        nx.plan_buckets([])
    with pytest.raises(nx.RequestError, match="an image has 30 tokens and the budget is 16"):
        plan({30: 1}, 1, 16)
    with pytest.raises(nx.RequestError, match="tokens=99999999, patch_size=16: expected integers of at least 1"):
        token_counts([(1, 1)], 99999999)
    with pytest.raises(nx.RequestError, match="tokens=8, patch_size=0: expected integers of at least 1"):
        token_counts([(1, 1)], 8, patch_size=0)


@pytest.mark.parametrize(
    ("cost", "message"),
    [
        (lambda tokens: float("nan"), "cost\\(4\\) is nan: expected a number of at least 0"),
        (lambda tokens: -tokens, "cost\\(4\\) is -4.0: expected a number of at least 0"),
        (lambda tokens: "much", "cost\\(4\\) is 'much': expected a number"),
        (
            lambda tokens: 100 - tokens,
            "cost\\(4\\) is 96.0 and cost\\(9\\) is 91.0: expected a cost that",
        ),
    ],
    ids=["nan", "negative", "text", "falling"],
)
def test_a_cost_must_be_one(cost: Callable[[int], float], message: str) -> None:
    with pytest.raises(nx.RequestError, match=message):
        plan({4: 1, 9: 2}, 2, 9, cost)
