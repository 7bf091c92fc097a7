"""Swapping the volume under a running guest: what is asked, and the rules that it must meet. Pure.

The rules are those of Nova's ``swap_volume``. Stricter in one: Nova counts the writers of a multi-attach volume, here
nobody else may use it at all, because a reader would go on with the old bytes just the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from cloudcore._values import normalise_uuid
from cloudcore.attach.lifecycle.rules import Violation
from cloudcore.attach.lifecycle.states import State
from cloudcore.errors import InUse, InvalidArgument, UnsupportedFeature, VolumeBusy
from cloudcore.notebook import Table, html_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cloudcore.attach.lifecycle.records import Attachment, Move
    from cloudcore.attach.volumes.values import Volume

__all__ = ["SwapPlan", "SwapRequest", "lasting_violations", "swap_violations", "takes_place"]

_IN_FLIGHT = frozenset({"reserved", "attaching", "detaching", "creating", "downloading", "extending", "maintenance"})


def _instance_id(value: str) -> str:
    return normalise_uuid(value, "instance_id")


def _volume_id(value: str) -> str:
    return normalise_uuid(value, "volume_id")


def _new_volume_id(value: str) -> str:
    return normalise_uuid(value, "new_volume_id")


@attrs.frozen(kw_only=True)
class SwapRequest:
    """What :meth:`AttachmentManager.swap_volume` was asked for, checked.

    Attributes:
        instance_id, volume_id, new_volume_id: UUIDs, of the instance, of what it has, and of what is to replace that.
        migration: The volume service waits for it, to move the volume to another backend: the old id remains.
    """

    instance_id: str = attrs.field(converter=_instance_id)
    volume_id: str = attrs.field(converter=_volume_id)
    new_volume_id: str = attrs.field(converter=_new_volume_id)
    migration: bool = False

    def __attrs_post_init__(self) -> None:
        if self.volume_id == self.new_volume_id:
            raise InvalidArgument(
                f"new_volume_id: volume {self.volume_id} cannot replace itself", field="new_volume_id"
            )

    @property
    def note(self) -> str:
        """As the row of the move keeps it."""
        return f"{self.volume_id} {self.new_volume_id} {'migration' if self.migration else 'swap'}"

    @classmethod
    def of(cls, move: Move) -> SwapRequest:
        """Read :attr:`note` of a swap."""
        volume_id, new_volume_id, what = str(move.note).split()
        return cls(
            instance_id=move.instance_id,
            volume_id=volume_id,
            new_volume_id=new_volume_id,
            migration=what == "migration",
        )


@attrs.frozen(kw_only=True)
class SwapPlan:
    """What a swap would do. Nothing was touched.

    Attributes:
        request: What was asked; whether it is a migration's.
        old, new: The volumes as the service describes them.
        violations: Every rule that it breaks; empty if it can be done. Of those that pass, try again later.
    """

    request: SwapRequest
    old: Volume
    new: Volume
    violations: tuple[Violation, ...]

    @property
    def possible(self) -> bool:
        """Nothing forbids it, now: a swap waits for nothing."""
        return not self.violations

    def _repr_html_(self) -> str:
        can = "It can be done" if self.possible else "It cannot be done"
        return html_of(
            f"{can}: volume {self.new.id} in the place of {self.old.id}, for instance {self.request.instance_id}",
            Table(title="Rules that it breaks", headings=("rule",), rows=tuple((v.message,) for v in self.violations)),
        )


def swap_violations(
    leg: Attachment, old: Volume, new: Volume, *, old_users: Sequence[str], new_users: Sequence[str], running: bool
) -> tuple[Violation, ...]:
    """Every rule that replacing *old* by *new* would break, the most telling first.

    Args:
        leg: The instance's attachment of *old*.
        old: As the service describes it.
        new: The same.
        old_users: Instances that use *old* beside it, by the journal or by the service.
        new_users: Instances that use *new*.
        running: Its guest runs, or is paused, with the volume.
    """
    return (
        *_of_instance(leg, running=running),
        *_of_old(old, old_users),
        *_of_new(leg, new, new_users),
        *_of_both(leg, old, new),
    )


def lasting_violations(
    old: Volume, new: Volume, *, old_users: Sequence[str], new_users: Sequence[str]
) -> tuple[Violation, ...]:
    """The rules that must still hold when the guest is to change over: a copy takes its time, and others go on.

    Args:
        old: As the service describes it.
        new: The same.
        old_users: Instances that use *old* beside that of the swap.
        new_users: Instances that use *new* beside it.
    """
    return (*_of_old(old, old_users), *_used(new, new_users), *_too_small(old, new))


def _of_instance(leg: Attachment, *, running: bool) -> list[Violation]:
    facts = {"identifier": leg.instance_id}
    if leg.state is not State.ATTACHED or leg.host is None:
        return [
            Violation("not-attached", f"attachment {leg.id} of instance {leg.instance_id} is {leg.state}", facts=facts)
        ]
    if not running:
        text = f"instance {leg.instance_id} does not run: detach volume {leg.volume_id}, copy it, attach the copy"
        return [Violation("not-running", text, facts=facts)]
    return []


def _of_old(old: Volume, users: Sequence[str]) -> list[Violation]:
    if users:
        text = f"volume {old.id} is used by {', '.join(users)} too, who would go on with the old bytes"
        return [Violation("shared", text, error=InUse, facts={"identifier": old.id, "users": list(users)})]
    return []


def _used(new: Volume, users: Sequence[str]) -> list[Violation]:
    if users:
        text = f"volume {new.id} is used by {', '.join(users)}: only what nobody has can take another's place"
        return [Violation("new-used", text, error=InUse, facts={"identifier": new.id, "users": list(users)})]
    return []


def _too_small(old: Volume, new: Volume) -> list[Violation]:
    if new.size < old.size:
        text = f"volume {new.id} has {new.size} bytes, fewer than the {old.size} of volume {old.id}"
        return [Violation("too-small", text, error=InvalidArgument, facts={"field": "new_volume_id"})]
    return []


def _of_new(leg: Attachment, new: Volume, users: Sequence[str]) -> list[Violation]:
    if used := _used(new, users):
        return used
    if new.status in _IN_FLIGHT:
        text = f"volume {new.id} is {new.status}; try again when that is over"
        return [Violation("volume-busy", text, error=VolumeBusy, facts={"identifier": new.id})]
    if new.status != "available":
        text = f"volume {new.id} is {new.status}: only an available one can take another's place"
        return [Violation("new-status", text, facts={"identifier": new.id})]
    if new.read_only and leg.mode == "rw":
        return [Violation("read-only-volume", f"volume {new.id} is read-only", facts={"identifier": new.id})]
    return []


def _of_both(leg: Attachment, old: Volume, new: Volume) -> list[Violation]:
    found = _too_small(old, new)
    for volume in (old, new):
        if volume.encrypted:
            text = f"volume {volume.id} is encrypted: QEMU cannot copy from and to LUKS under a running guest"
            found.append(Violation("encrypted", text, error=UnsupportedFeature, facts={"needed": "encryption"}))
    if old.multiattach != new.multiattach:
        text = f"only one of volumes {old.id} and {new.id} is multi-attach: a running guest's disk stays as it is"
        found.append(Violation("multiattach", text, error=UnsupportedFeature, facts={"needed": "multiattach"}))
    if (new.migration_status or "").startswith("target:") and not takes_place(old, new):
        text = f"volume {new.id} is to take the place of another ({new.migration_status}), not of volume {old.id}"
        found.append(Violation("other-migration", text, facts={"identifier": new.id}))
    if old.migrating and not takes_place(old, new):
        text = f"volume {old.id} migrates ({old.migration_status}), and not to volume {new.id}"
        found.append(Violation("other-migration", text, facts={"identifier": old.id}))
    return found


def takes_place(old: Volume, new: Volume) -> bool:
    """Whether the service waits for *new* to replace *old*."""
    return old.migrating and new.migration_status == f"target:{old.id}"
