"""Evidence that a host is dead, without which nothing is forced. Pure.

Time passed is no evidence: a host that cannot be reached may still write. Powering it off, revoking its access at the
storage, or its own lease having expired at a watchdog is evidence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import attrs

from cloudcore._values import require_text
from cloudcore.errors import FencingRequired

if TYPE_CHECKING:
    from datetime import datetime

__all__ = ["Evidence", "Fencer", "judged", "require_evidence"]


@attrs.frozen(kw_only=True)
class Evidence:
    """Why a host counts as dead.

    Attributes:
        host: Name of the host.
        kind: ``"power-off"`` (its power controller says so), ``"storage-revoked"`` (the backend no longer lets it in)
            or ``"lease-expired"`` (its watchdog must have reset it).
        by: Who or what says so; for the journal.
        at: When it was established.
    """

    host: str
    kind: Literal["power-off", "storage-revoked", "lease-expired"]
    by: str
    at: datetime

    def __attrs_post_init__(self) -> None:
        require_text(self.host, "host")
        require_text(self.by, "by")

    def __str__(self) -> str:
        return f"{self.host} is dead: {self.kind}, says {self.by}, {self.at.isoformat()}"


@runtime_checkable
class Fencer(Protocol):
    """Knows, or makes sure, that a host is dead."""

    def evidence(self, host: str) -> Evidence | None:
        """Evidence that *host* is dead and stays so until an operator brings it back; None if there is none."""


def judged(fencer: Fencer | None, host: str) -> Evidence | None:
    """The fencer's evidence that *host* is dead, if it is evidence of that: not about another host, nor anything else.

    Everything that is forced goes through here, asked for or not.
    """
    found = None if fencer is None else fencer.evidence(host)
    return found if isinstance(found, Evidence) and found.host == host else None


def require_evidence(fencer: Fencer | None, host: str) -> Evidence:
    """The evidence that *host* is dead.

    Raises:
        FencingRequired: There is none, or it is about another host. Nothing was done.
    """
    found = judged(fencer, host)
    if found is None:
        who = "no fencer was given" if fencer is None else "the fencer has no evidence"
        raise FencingRequired(
            f"host {host} is not known to be dead ({who}): forcing would let two writers at its volumes. "
            f"Fence it (power off, revoke at the storage) and try again",
            host=host,
        )
    return found
