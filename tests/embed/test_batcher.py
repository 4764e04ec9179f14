"""The Batcher, in a time of the tests' own: what it gives when, and that nobody waits too long."""

from __future__ import annotations

import random
import threading

import pytest

import naflex_export as nx
from naflex_export.embed.batcher import ReadyBatch


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def batcher(clock: Clock, size: int = 4, wait: float = 1.0) -> nx.Batcher[str]:
    return nx.Batcher([16, 64, 256], size, wait, clock)


def put(target: nx.Batcher[str], names: str) -> None:
    """Put images by name: a letter that says the bucket (s, m, l) and a number."""
    for name in names.split():
        target.put(name, {"s": 9, "m": 50, "l": 256}[name[0]])


def said(batch: ReadyBatch[str] | None) -> str:
    return "nothing" if batch is None else f"{batch.bucket.tokens}: {' '.join(batch.items)}"


def test_a_full_batch_is_ready_at_once_and_a_smaller_one_at_its_bound(clock: Clock) -> None:
    target = batcher(clock)
    assert (said(target.take()), target.due_in(), len(target)) == ("nothing", None, 0)
    put(target, "m1 m2 m3")
    assert (said(target.take()), target.due_in(), len(target)) == ("nothing", 1.0, 3)
    put(target, "m4 m5")
    assert target.due_in() == 0.0
    assert said(target.take()) == "64: m1 m2 m3 m4"
    clock.now += 0.75
    assert (said(target.take()), target.due_in()) == ("nothing", 0.25)
    clock.now += 0.25
    assert target.due_in() == 0.0
    assert said(target.take()) == "64: m5"
    assert (said(target.take()), len(target)) == ("nothing", 0)


def test_of_two_full_batches_the_longest_waiting_is_first(clock: Clock) -> None:
    target = batcher(clock, size=2)
    put(target, "l1")
    clock.now += 0.1
    put(target, "s1 s2")
    clock.now += 0.1
    put(target, "l2")
    assert [said(target.take()) for _ in range(3)] == ["256: l1 l2", "16: s1 s2", "nothing"]


def test_a_late_batch_is_filled_from_its_own_and_the_next_smaller_bucket(clock: Clock) -> None:
    target = batcher(clock)
    put(target, "l1")
    clock.now += 0.5
    put(target, "l2 m1 s1 s2 s3")
    clock.now += 0.5
    assert said(target.take()) == "256: l1 l2 m1"  # and not the small ones, which would be padded sixteen times
    put(target, "l3")
    clock.now += 0.5
    assert said(target.take()) == "16: s1 s2 s3"
    put(target, "s4 s5 s6 s7 s8")
    clock.now += 0.5
    assert said(target.take()) == "256: l3 s4 s5 s6"  # nothing waits in the bucket between
    assert said(target.take()) == "nothing"


def test_no_batch_is_filled_from_a_larger_bucket(clock: Clock) -> None:
    target = batcher(clock)
    put(target, "s1")
    clock.now += 0.5
    put(target, "m1 l1")
    clock.now += 0.5
    assert said(target.take()) == "16: s1"


def test_all_late_images_go_together_in_the_largest_of_their_buckets(clock: Clock) -> None:
    target = batcher(clock)
    put(target, "s1 l1")
    clock.now += 0.5
    put(target, "m1 m2 s2")
    clock.now += 0.5
    assert said(target.take()) == "256: s1 l1 m1 m2"
    clock.now += 0.5
    assert said(target.take()) == "16: s2"


def test_where_more_are_late_than_a_batch_takes_batches_are_of_one_bucket_oldest_first(clock: Clock) -> None:
    target = batcher(clock, size=2)
    put(target, "m1 l1 s1")
    clock.now += 0.1
    put(target, "m2 l2 s2 s3")
    clock.now += 1.0
    expected = ["64: m1 m2", "256: l1 l2", "16: s1 s2", "16: s3", "nothing"]
    assert [said(target.take()) for _ in range(5)] == expected


def test_a_late_batch_of_overload_is_filled_too(clock: Clock) -> None:
    target = batcher(clock, size=2)
    put(target, "m1")
    clock.now += 0.1
    put(target, "s1 s2 s3")
    clock.now += 1.0
    assert [said(target.take()) for _ in range(3)] == ["64: m1 s1", "16: s2 s3", "nothing"]


def test_the_end_of_a_stream_is_taken_bucket_by_bucket(clock: Clock) -> None:
    target = batcher(clock)
    put(target, "m1 s1 m2 l1")
    taken = [said(target.take(at_once=True)) for _ in range(4)]
    assert taken == ["64: m1 m2", "16: s1", "256: l1", "nothing"]


@pytest.mark.parametrize("seed", range(8))
def test_no_image_waits_longer_than_the_bound_plus_one_batch(clock: Clock, seed: int) -> None:
    """Whatever comes, as long as batches are run faster than images come."""
    draw = random.Random(seed)
    size, wait, batch_time = draw.randint(2, 6), draw.choice([0.0, 0.3, 1.0]), draw.choice([0.2, 1.0])
    target: nx.Batcher[float] = nx.Batcher([16, 64, 256], size, wait, clock)
    comes, free, longest, images = clock.now, clock.now, 0.0, 0
    for _ in range(3000):
        if comes <= free:
            clock.now = max(clock.now, comes)
            target.put(clock.now, draw.choice([1, 16, 17, 64, 256]))
            comes += draw.uniform(1.0, 4.0) * batch_time / size
            continue
        clock.now = max(clock.now, free)
        if (batch := target.take()) is not None:
            longest = max([longest, *(clock.now - since for since in batch.items)])
            images += len(batch.items)
            free = clock.now + batch_time
        else:
            due = target.due_in()
            free = comes if due is None else min(comes, clock.now + due)
    assert images > 1000
    assert longest <= wait + batch_time + 1e-6
    assert longest > wait - 1e-6  # or nothing has been tried


def test_threads_lose_no_image_and_get_none_twice() -> None:
    target: nx.Batcher[int] = nx.Batcher([16, 64], 3, wait=0)
    numbers, found = range(400), []
    putting = [
        threading.Thread(target=lambda part=part: [target.put(n, 1 + n % 64) for n in numbers[part::4]])
        for part in range(4)
    ]
    for thread in putting:
        thread.start()
    while any(thread.is_alive() for thread in putting) or len(target):
        if (batch := target.take()) is not None:
            found += batch.items
    assert sorted(found) == list(numbers)


def test_arguments_are_checked(clock: Clock) -> None:
    with pytest.raises(nx.InputError, match=r"257 tokens are more than any bucket takes \(16, 64, 256\)"):
        batcher(clock).put("x", 257)
    with pytest.raises(nx.RequestError, match="size=33: expected at most 32, the largest batch of bucket 16:1,8,32"):
        batcher(clock, size=33)
    with pytest.raises(nx.RequestError, match="size=0: expected an integer of at least 1"):
        batcher(clock, size=0)
    with pytest.raises(nx.RequestError, match="wait=nan: expected seconds of at least 0"):
        batcher(clock, wait=float("nan"))
    with pytest.raises(nx.RequestError, match="no bucket was given"):
        nx.Batcher([])
