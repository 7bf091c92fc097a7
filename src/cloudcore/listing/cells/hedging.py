"""When to ask a replica too: after the time within which nearly all answers come, and only within a budget. Pure.

One slow server in a hundred makes most pages over a hundred cells slow. A second request, sent when the first is later
than 95 of 100 answers were, removes that tail for about five requests more in a hundred; the budget makes sure that a
cell whose every answer is late does not get twice the load.
"""

from __future__ import annotations

from collections import deque

import attrs

__all__ = ["HedgePolicy", "Hedger"]


@attrs.frozen(kw_only=True)
class HedgePolicy:
    """How replicas are used.

    Attributes:
        quantile: Share of answers that come before a second request goes out.
        budget: Second requests for each first one, in the long run.
        burst: Second requests that may be saved up.
        floor: Seconds that a first request always gets.
        initial: Seconds that it gets while too few answers are known.
    """

    quantile: float = 0.95
    budget: float = 0.05
    burst: float = 3.0
    floor: float = 0.002
    initial: float = 0.05


class Hedger:
    """The latencies of one cell and its budget. Not thread-safe: the owner locks."""

    policy: HedgePolicy

    WINDOW = 100
    ENOUGH = 10

    def __init__(self, policy: HedgePolicy | None = None) -> None:
        self.policy = policy or HedgePolicy()
        self._recent: deque[float] = deque(maxlen=self.WINDOW)
        self._tokens = self.policy.burst

    def note_request(self) -> None:
        """A first request goes out: it earns a share of a second one."""
        self._tokens = min(self.policy.burst, self._tokens + self.policy.budget)

    def note_answer(self, seconds: float) -> None:
        """An answer came after *seconds*."""
        self._recent.append(seconds)

    def patience(self) -> float:
        """Seconds to wait for the first request before the second goes out."""
        if len(self._recent) < self.ENOUGH:
            return self.policy.initial
        ranked = sorted(self._recent)
        return max(self.policy.floor, ranked[min(len(ranked) - 1, int(self.policy.quantile * len(ranked)))])

    def spend(self) -> bool:
        """Take one second request out of the budget; False when there is none."""
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True
