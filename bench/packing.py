"""Instances that arrive on hosts of several shapes and leave them, and who packs them how well.

The same story for everybody: :func:`story` draws it, :func:`best_fit` is a dozen lines of numpy that anybody would
write, :func:`fewest` what no packing can go below.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

import numpy as np

SHAPES = [(64, 262_144), (96, 393_216), (128, 262_144)]
"""Processors and MB of memory of a host."""

FLAVORS = [(cores, cores * gigabytes * 1024) for cores in (2, 4, 8, 16) for gigabytes in (2, 4)]


def hosts(count: int) -> list[tuple[int, int]]:
    """The hosts, in turn of each shape."""
    return [SHAPES[number % len(SHAPES)] for number in range(count)]


def story(arrivals: int, *, seed: int = 11) -> list[tuple[int, int]]:
    """(flavor, -1) for one that arrives; (-1, place among those that are there) for one that leaves."""
    choose = random.Random(seed)
    events: list[tuple[int, int]] = []
    alive = arrived = 0
    while arrived < arrivals:
        if arrived > arrivals // 2 and choose.random() < 0.4:
            events.append((-1, choose.randrange(alive)))
            alive -= 1
        else:
            events.append((choose.randrange(len(FLAVORS)), -1))
            alive += 1
            arrived += 1
    return events


def told(
    events: Sequence[tuple[int, int]], place: Callable[[int], int], leave: Callable[[int, int], None], every: int
) -> Iterator[list[tuple[int, int]]]:
    """Let the story happen; gives, time and again, (flavor, host) of all that are there.

    Args:
        events: Of :func:`story`.
        place: Flavor → the host that it goes to.
        leave: Is told of the arrival that leaves, counted from 0, and of its host.
        every: Events between two looks.
    """
    alive: list[tuple[int, int, int]] = []
    arrived = 0
    for number, (flavor, leaving) in enumerate(events, 1):
        if flavor < 0:
            _, host, arrival = alive.pop(leaving)
            leave(arrival, host)
        else:
            alive.append((flavor, place(flavor), arrived))
            arrived += 1
        if number % every == 0 or number == len(events):
            yield [(each[0], each[1]) for each in alive]


class BestFit:
    """Best fit in numpy: of the hosts with room, the one with the smallest free share."""

    def __init__(self, count: int) -> None:
        self.whole = np.asarray(hosts(count), dtype=float)
        self.left = self.whole.copy()
        self.where: list[tuple[int, int]] = []

    def place(self, flavor: int) -> int:
        asked = FLAVORS[flavor]
        share = (self.left / self.whole).mean(axis=1)
        share[(self.left < asked).any(axis=1)] = np.inf
        host = int(share.argmin())
        self.left[host] -= asked
        self.where.append((host, flavor))
        return host

    def leave(self, arrival: int, host: int) -> None:
        self.left[host] += FLAVORS[self.where[arrival][1]]


def in_use(alive: Sequence[tuple[int, int]]) -> int:
    """How many hosts hold something."""
    return len({host for _, host in alive})


def fewest(alive: Sequence[tuple[int, int]], count: int) -> int:
    """No packing needs fewer hosts: the largest ones together must hold each resource."""
    need = np.asarray([FLAVORS[flavor] for flavor, _ in alive], dtype=float).sum(axis=0)
    whole = np.sort(np.asarray(hosts(count), dtype=float), axis=0)[::-1].cumsum(axis=0)
    return max(int(np.searchsorted(whole[:, each], need[each])) + 1 for each in range(2))
