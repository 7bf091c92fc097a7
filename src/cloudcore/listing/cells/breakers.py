"""Circuit breakers: a cell that keeps failing is not asked for a while, then probed by one request. Pure.

========== ====================================================================================
closed     the cell is asked; *threshold* failures in a row open the breaker
open       the cell is not asked until the breaker's time has come; the pause doubles each time
half-open  one request is let through as a probe; its success closes, its failure opens again
========== ====================================================================================
"""

from __future__ import annotations

from enum import StrEnum

import attrs
from sortedcontainers import SortedSet

from cloudcore.errors import InvariantViolated

__all__ = ["BreakerPolicy", "BreakerState", "BreakerView", "Breakers"]


class BreakerState(StrEnum):
    """See the module's text."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


@attrs.frozen(kw_only=True)
class BreakerPolicy:
    """When a cell is left alone, and for how long.

    Attributes:
        threshold: Failures in a row that open the breaker.
        pause: Seconds before the first probe.
        longest: Upper bound in seconds of the pause, which doubles with each failed probe.
    """

    threshold: int = 3
    pause: float = 5.0
    longest: float = 60.0


@attrs.frozen(kw_only=True)
class BreakerView:
    """A breaker as it stands.

    Attributes:
        state: See :class:`BreakerState`.
        failures: In a row, so far.
        opens_at: Instant on the caller's monotonic clock at which a probe is let through; None when closed.
        reason: The last failure's text.
    """

    state: BreakerState = BreakerState.CLOSED
    failures: int = 0
    opens_at: float | None = None
    reason: str | None = None


_CLOSED = BreakerView()


class Breakers:
    """The breakers of all cells. Not thread-safe: the owner locks.

    Every call takes the present instant on a monotonic clock, in seconds. O(log n) in the number of open breakers.
    """

    policy: BreakerPolicy

    def __init__(self, policy: BreakerPolicy | None = None) -> None:
        self.policy = policy or BreakerPolicy()
        self._views: dict[str, BreakerView] = {}
        self._waiting: SortedSet[tuple[float, str]] = SortedSet()

    def admit(self, cell: str, now: float) -> bool:
        """Whether a request to *cell* may go now. A probe is admitted once per pause."""
        view = self._views.get(cell)
        if view is None or view.state is BreakerState.CLOSED:
            return True
        assert view.opens_at is not None
        if now < view.opens_at:
            return False
        # One probe at a time; should it never report back, the next one may go after another pause.
        self._set(cell, attrs.evolve(view, state=BreakerState.HALF_OPEN, opens_at=now + self._pause(view.failures)))
        return True

    def troubled(self, cell: str) -> bool:
        """Whether *cell* has failed since its last success."""
        return cell in self._views

    @property
    def any_troubled(self) -> bool:
        """Whether any cell is."""
        return bool(self._views)

    def succeed(self, cell: str) -> None:
        """*cell* has answered: it is closed again."""
        self._set(cell, None)

    def fail(self, cell: str, now: float, reason: str) -> None:
        """*cell* has failed or was too slow."""
        failures = self._views.get(cell, _CLOSED).failures + 1
        if failures < self.policy.threshold:
            self._set(cell, BreakerView(failures=failures, reason=reason))
            return
        opens_at = now + self._pause(failures)
        self._set(cell, BreakerView(state=BreakerState.OPEN, failures=failures, opens_at=opens_at, reason=reason))

    def forget(self, cell: str) -> None:
        """*cell* is gone, or was replaced."""
        self._set(cell, None)

    def view(self, cell: str) -> BreakerView:
        """How the breaker of *cell* stands."""
        return self._views.get(cell, _CLOSED)

    def next_probe(self) -> tuple[float, str] | None:
        """The open breaker whose time comes first, as (instant, cell)."""
        return self._waiting[0] if self._waiting else None

    def due(self, now: float) -> list[str]:
        """Cells whose breaker is open and may be probed now, longest due first."""
        return [cell for _, cell in self._waiting.irange(maximum=(now, "\U0010ffff"))]

    def _pause(self, failures: int) -> float:
        doubled = self.policy.pause * 2.0 ** min(failures - self.policy.threshold, 30)
        return float(min(max(doubled, self.policy.pause), self.policy.longest))

    def _set(self, cell: str, view: BreakerView | None) -> None:
        old = self._views.pop(cell, None)
        if old is not None and old.opens_at is not None:
            self._waiting.discard((old.opens_at, cell))
        if view is not None:
            self._views[cell] = view
            if view.opens_at is not None:
                self._waiting.add((view.opens_at, cell))

    def check(self) -> None:
        """Verify that the order by time and the states agree.

        Raises:
            InvariantViolated: They do not.
        """
        waiting = {(view.opens_at, cell) for cell, view in self._views.items() if view.opens_at is not None}
        if waiting != set(self._waiting):
            raise InvariantViolated("breakers: the order of probes does not match the states")
