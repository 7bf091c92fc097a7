"""What the workflows of one manager share: its journal, its locks, and what does their steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloudcore.attach.journal.journal import Journal
    from cloudcore.attach.journal.leases import Leases
    from cloudcore.attach.journal.moves import MoveStore
    from cloudcore.attach.lifecycle.fencing import Fencer
    from cloudcore.attach.volumes.interface import VolumeService
    from cloudcore.attach.workflow.driver import Driver
    from cloudcore.attach.workflow.recovery import Recovery

__all__ = ["Parts", "Workflow"]


@attrs.frozen(kw_only=True)
class Parts:
    """The parts of one manager that its workflows are made of."""

    journal: Journal
    rows: MoveStore
    driver: Driver
    leases: Leases
    recovery: Recovery
    volumes: VolumeService
    fencer: Fencer | None
    id_factory: Callable[[], str]


class Workflow:
    """Has the parts at hand."""

    def __init__(self, parts: Parts) -> None:
        self._journal = parts.journal
        self._rows = parts.rows
        self._driver = parts.driver
        self._leases = parts.leases
        self._recovery = parts.recovery
        self._volumes = parts.volumes
        self._fencer = parts.fencer
        self._new_id = parts.id_factory
