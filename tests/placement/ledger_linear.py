"""Is a history of claims and releases on one inventory linearizable? The search of Wing and Gong, with memory.

Each operation took effect at one instant between its begin and its end: is there an order of such instants in which
every claim that was granted fitted and every claim that was refused did not? Operations whose outcome is unknown may
have taken effect at any time after their begin, or never.
"""

from __future__ import annotations

import math

import attrs


@attrs.frozen
class Call:
    """One operation: "claim" or "release" of *amount*; outcome "ok", "refused" or "unknown"."""

    kind: str
    amount: int
    outcome: str
    begun: int
    ended: float


def linearizable(history: list[Call], capacity: int) -> bool:
    """True if some order explains *history*, from an empty inventory of *capacity*."""
    calls = sorted(history, key=lambda call: call.begun)
    ends = [math.inf if call.outcome == "unknown" else call.ended for call in calls]
    seen: set[tuple[int, int, int]] = set()
    stack = [(0, 0, 0)]  # (index of the first call not done, bits of those after it that are done, used)
    while stack:
        state = stack.pop()
        if state in seen:
            continue
        seen.add(state)
        first, done, used = state
        while first < len(calls) and done & 1:
            first, done = first + 1, done >> 1
        if all(done >> (i - first) & 1 or calls[i].outcome == "unknown" for i in range(first, len(calls))):
            return True
        # A call may come next if it began before every call still to be done has ended.
        horizon = math.inf
        for i in range(first, len(calls)):
            if calls[i].begun > horizon:
                break
            if done >> (i - first) & 1:
                continue
            after = _apply(calls[i], used, capacity)
            if after is not None:
                stack.append((first, done | 1 << (i - first), after))
            horizon = min(horizon, ends[i])
    return False


def _apply(call: Call, used: int, capacity: int) -> int | None:
    """What is used after *call* took effect; None if its outcome does not fit."""
    if call.kind == "release":
        return used - call.amount
    fits = used + call.amount <= capacity
    if call.outcome == "refused":
        return None if fits else used
    return used + call.amount if fits else None
