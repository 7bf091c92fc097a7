"""What a small world tells of: its instances, what happened to them, and when. Pure."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Literal

import attrs

from cloudcore.testing.worlds.rows import START

__all__ = ["Clock", "Event", "Guest", "What"]

What = Literal["boot", "move", "revert", "delete"]


@attrs.frozen(kw_only=True)
class Guest:
    """An instance as it is now.

    Attributes:
        uuid: Of the instance, the same in ledger and listing.
        name: Its display name.
        flavor: Name of its flavor.
        project_id: Who pays.
        user_id: Who asked.
        host: Name of the host that it is on.
        cell: Name of the cell that it is in.
    """

    uuid: str
    name: str
    flavor: str
    project_id: str
    user_id: str
    host: str
    cell: str


@attrs.frozen(kw_only=True)
class Event:
    """Something that happened to an instance.

    Attributes:
        at: When, by the clock of the world: a minute after the one before.
        what: ``boot``; ``move`` (begun and confirmed), ``revert`` (begun and reverted), or ``delete``.
        instance: Uuid of the instance.
        source: Name of the host that it was on; None for a boot.
        destination: Name of the host that it went to; None for the last.
    """

    at: datetime
    what: What
    instance: str
    source: str | None
    destination: str | None


@attrs.define
class Clock:
    """The clock of a world: it stands until something happens."""

    now: datetime = START

    def tick(self) -> None:
        """A minute passes."""
        self.now += timedelta(minutes=1)

    def __call__(self) -> datetime:
        """The present instant."""
        return self.now
