"""What cloudcore asks of a hypervisor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Self, runtime_checkable

from cloudcore.disks import GuestDisks

if TYPE_CHECKING:
    from cloudcore.hypervisor.facts.host import HostFacts

__all__ = ["Hypervisor"]


@runtime_checkable
class Hypervisor(GuestDisks, Protocol):
    """One compute host: the disks of its guests (:class:`~cloudcore.disks.GuestDisks`), and what it is.

    The contract, which :class:`cloudcore.testing.HypervisorContract` checks of any implementation:

    * every method may be called from any thread and comes back within a deadline of the adapter's own;
    * every method may be repeated: what is done already is success;
    * a lost connection is noticed and made again by the next call; while there is none,
      :class:`~cloudcore.errors.HypervisorUnavailable` is raised instead of an answer being guessed;
    * a disk is present when a definition, read at that moment, has it, and gone when none has it: the values returned
      are read back, never assumed;
    * the live and the persistent definition are kept in step. A disk that only the live one has is being let go:
      attaching it again raises :class:`~cloudcore.errors.Conflict` until that has ended;
    * errors carry the hypervisor's own code where they have one.
    """

    def facts(self) -> HostFacts:
        """What the host is, read at this moment. What the hypervisor does not tell is left empty.

        Raises:
            HypervisorUnavailable: No connection.
            DeadlineExceeded: It did not answer in time.
        """

    def define_secret(self, secret_id: str, *, kind: str, name: str, value: bytes) -> None:
        """Give the host a key under the id that disks name; an existing one gets the new value.

        Args:
            secret_id: UUID of the secret.
            kind: ``"ceph"``, ``"iscsi"``, or ``"volume"`` for the passphrase of an encrypted volume.
            name: What it is the key of, such as ``"client.cinder"``.
            value: The key itself, never logged and never in an error.

        Raises:
            InvalidArgument: Another kind, or no UUID.
            UnsupportedFeature: The hypervisor keeps no secrets.
        """

    def check(self) -> None:
        """Look for what must never be: a volume or a device name twice in a guest, a volume in two different ways.

        Raises:
            InvariantViolated: There is such a thing.
        """

    def close(self) -> None:
        """End connections and threads; guests are not touched. Repeated calls do nothing."""

    def __enter__(self) -> Self:
        """The hypervisor itself."""

    def __exit__(self, *exception: object) -> None:
        """Close it."""
