"""Numbers come in the order of their weights, however few are read, and wherever ties begin."""

from __future__ import annotations

import random
from itertools import islice

import numpy as np
import pytest

from cloudcore.placement.hosts.best_first import BestFirst


@pytest.mark.parametrize("seed", range(40))
def test_as_sorting_all_of_them_does(seed: int) -> None:
    choose = random.Random(seed)
    size = choose.choice([1, 7, 40, 300, 3_000, 9_000])
    levels = choose.choice([1, 3, 50, 10**9])  # few levels: many ties
    weights = np.asarray([choose.randrange(levels) - levels / 2 for _ in range(size)])
    if choose.random() < 0.3:
        weights.sort()
    share = choose.choice([0.0, 0.01, 0.5, 1.0])
    chosen = np.asarray([choose.random() < share for _ in range(size)])
    chosen[:: max(1, size // 1024)] &= choose.random() < 0.5  # what a sample may look at tells nothing of the others
    start = choose.randrange(size)
    right = sorted(np.flatnonzero(chosen).tolist(), key=lambda n: (-weights[n], (n - start) % size))

    best = BestFirst(weights, chosen, start)
    walk = (number for portion in best for number in portion.tolist())
    some = list(islice(walk, choose.randrange(size + 1)))
    assert [number for portion in best for number in portion.tolist()] == right
    assert some + list(walk) == right

    fresh = BestFirst(weights, chosen, start)
    next(iter(fresh), None)
    for number in choose.sample(right, min(5, len(right))):
        higher = sum(1 for other in right if weights[other] > weights[number])
        assert best.rank(number) == fresh.rank(number) == higher
