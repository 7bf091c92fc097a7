"""The rules that a volume, an instance and a request must meet before anything is touched. Pure.

:func:`violations` lists all that are broken, each with a code; the manager raises the first, the dry run shows all.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Protocol

import attrs

from cloudcore._values import normalise_uuid, require_text
from cloudcore.attach.lifecycle.records import Settings
from cloudcore.attach.lifecycle.states import State
from cloudcore.disks import DiskBus
from cloudcore.errors import (
    AlreadyExists,
    CloudcoreError,
    Conflict,
    InUse,
    InvalidArgument,
    InvalidDisk,
    LimitExceeded,
    PolicyDenied,
    UnsupportedFeature,
    VolumeBusy,
)
from cloudcore.notebook import Table, html_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cloudcore.attach.lifecycle.records import Attachment
    from cloudcore.attach.volumes.values import AttachMode, Volume, VolumeFeatures

__all__ = [
    "AttachPlan",
    "AttachRequest",
    "Limits",
    "Policy",
    "Violation",
    "needs_target_lock",
    "plan",
    "takes_over",
    "violations",
]

_BUS_LIMITS = {DiskBus.SATA: 6, DiskBus.IDE: 4, DiskBus.USB: 16}
"""Names go on after vdz; how many virtio and SCSI disks fit is for the guest's machine to say, when it is plugged."""

_IN_FLIGHT = frozenset({"reserved", "attaching", "detaching", "creating", "extending", "maintenance"})


@attrs.frozen(kw_only=True)
class Limits:
    """How many volumes one instance may have.

    Attributes:
        per_instance: In all; None for no limit.
        per_bus: By bus; a bus that is missing has no limit.
    """

    per_instance: int | None = None
    per_bus: Mapping[DiskBus, int] = attrs.field(factory=lambda: dict(_BUS_LIMITS))


def _volume_id(value: str) -> str:
    return normalise_uuid(value, "volume_id")


def _instance_id(value: str) -> str:
    return normalise_uuid(value, "instance_id")


@attrs.frozen(kw_only=True)
class AttachRequest:
    """What :meth:`AttachmentManager.attach` was asked for, checked.

    Attributes are those of its arguments; ids are in their normal form. Without a host the volume is only held.
    """

    volume_id: str = attrs.field(converter=_volume_id)
    instance_id: str = attrs.field(converter=_instance_id)
    mode: AttachMode = attrs.field(default="rw")
    host: str | None = attrs.field()
    bus: DiskBus = attrs.field(default=DiskBus.VIRTIO)
    target: str | None = attrs.field(default=None)
    boot_order: int | None = attrs.field(default=None)
    cache: str | None = None
    delete_on_termination: bool = False

    @mode.validator
    def _check_mode(self, _: Any, value: str) -> None:
        if value not in {"rw", "ro"}:
            raise InvalidArgument(f"mode: {value!r} is neither 'rw' nor 'ro'", field="mode", value=value)

    @host.validator
    def _check_host(self, _: Any, value: str | None) -> None:
        if value is not None:
            require_text(value, "host")

    @bus.validator
    def _check_bus(self, _: Any, value: DiskBus) -> None:
        if not isinstance(value, DiskBus):
            raise InvalidArgument(f"bus: {value!r} is none of {', '.join(DiskBus)}", field="bus", value=value)

    @target.validator
    def _check_target(self, _: Any, value: str | None) -> None:
        if value is not None:
            require_text(value, "target", maximum=32)

    @boot_order.validator
    def _check_boot_order(self, _: Any, value: int | None) -> None:
        if value is not None and (type(value) is not int or value < 1):
            raise InvalidArgument(f"boot_order: {value!r} is not a number from 1", field="boot_order", value=value)

    def settings(self, volume: Volume) -> Settings:
        """What the journal keeps of the request and the volume."""
        return Settings(
            shareable=volume.multiattach,
            bus=self.bus,
            target=self.target,
            boot_order=self.boot_order,
            cache=self.cache,
            delete_on_termination=self.delete_on_termination,
            size=volume.size,
            service_uuid=volume.service_uuid,
            shared_targets=volume.shared_targets,
            encrypted=volume.encrypted,
        )

    def as_json(self) -> dict[str, Any]:
        """For the fingerprint of an operation id."""
        return attrs.asdict(self)


class Policy(Protocol):
    """Whether a project may do something. Rules: ``"multiattach"``, ``"multiattach_bootable"``."""

    def allows(self, rule: str, request: AttachRequest, volume: Volume) -> bool:
        """True if *rule* permits it."""


@attrs.frozen
class Violation:
    """A rule that a request breaks.

    Attributes:
        code: Short and stable: ``"already-attached"``, ``"exclusive"``, ``"volume-status"``, ``"volume-busy"``, ...
        message: For people.
        error: What :meth:`AttachmentManager.attach` raises for it.
        facts: The attributes of that error.
    """

    code: str
    message: str
    error: type[CloudcoreError] = attrs.field(default=Conflict, kw_only=True)
    facts: Mapping[str, Any] = attrs.field(factory=dict, kw_only=True, hash=False)

    @property
    def passing(self) -> bool:
        """It is no refusal: :meth:`AttachmentManager.attach` waits until it is over."""
        return self.code == "volume-busy"

    def as_error(self) -> CloudcoreError:
        """The error to raise."""
        return self.error(self.message, **self.facts)


@attrs.frozen(kw_only=True)
class AttachPlan:
    """What an attach would do. Nothing was touched.

    Attributes:
        request: What was asked.
        volume: As the service describes it now.
        violations: Every rule that it breaks; empty, or only passing ones, if it can be done.
        locks: Names of the leases that it would take, in order.
        steps: What it would do, in order.
        compensations: For each step, what would undo it.
    """

    request: AttachRequest
    volume: Volume
    violations: tuple[Violation, ...]
    locks: tuple[str, ...]
    steps: tuple[str, ...]
    compensations: tuple[str, ...]

    def _repr_html_(self) -> str:
        can = "It can be done" if self.possible else "It cannot be done"
        steps = tuple(zip(self.steps, self.compensations, strict=True))
        return html_of(
            f"{can}: volume {self.volume.id} to instance {self.request.instance_id}",
            Table(title="Rules that it breaks", headings=("rule",), rows=tuple((v.message,) for v in self.violations)),
            Table(title="Steps", headings=("step", "what would undo it"), rows=steps),
        )

    @property
    def possible(self) -> bool:
        """Nothing forbids it."""
        return all(violation.passing for violation in self.violations)


def violations(
    request: AttachRequest,
    volume: Volume,
    *,
    volume_legs: Sequence[Attachment],
    instance_legs: Sequence[Attachment],
    limits: Limits,
    features: VolumeFeatures,
    denied: Sequence[str] = (),
    moving: bool = False,
    shelved: bool = False,
    swapped_by: str | None = None,
) -> tuple[Violation, ...]:
    """Every rule that attaching would break, the most telling first.

    Args:
        request: What is asked.
        volume: As the service describes it.
        volume_legs: The journal's legs of the volume that are not absent.
        instance_legs: Those of the instance.
        limits: Of volumes per instance and bus.
        features: Of the volume service.
        denied: Names of the policy rules that said no.
        moving: The instance is on its way to another host.
        shelved: It is on none, and is to come back.
        swapped_by: The instance for which the volume is being swapped; None if it is not.
    """
    found = [
        *_moving(request, moving=moving or (shelved and request.host is not None)),
        *_swapped(volume, swapped_by),
        *_same_volume_twice(request, volume_legs),
        *_exclusive(request, volume, volume_legs),
        *_status(volume, volume_legs),
        *_nature(request, volume, features, denied),
        *_places(request, instance_legs, limits),
    ]
    return tuple(found)


def _moving(request: AttachRequest, *, moving: bool) -> list[Violation]:
    if not moving:
        return []
    text = f"instance {request.instance_id} is moving; confirm or revert that first"
    return [Violation("moving", text, facts={"identifier": request.instance_id})]


def _swapped(volume: Volume, instance_id: str | None) -> list[Violation]:
    """Multi-attach or not: whoever began now would go on with bytes that are about to be nobody's."""
    if instance_id is None:
        return []
    text = f"volume {volume.id} is in a swap of instance {instance_id}; try again when that is finished or reverted"
    return [Violation("swapping", text, facts={"identifier": volume.id})]


def _same_volume_twice(request: AttachRequest, legs: Sequence[Attachment]) -> list[Violation]:
    """Cinder lets an instance reserve its own volume again; that rule is for moves, so it is ours to refuse it."""
    mine = [leg for leg in legs if leg.instance_id == request.instance_id]
    return [
        Violation(
            "already-attached",
            f"instance {request.instance_id} has volume {leg.volume_id} already: attachment {leg.id} is {leg.state}",
            error=AlreadyExists,
            facts={"identifier": leg.id},
        )
        for leg in mine[:1]
        if not takes_over(request, leg)
    ] + [
        Violation(
            "mode-differs",
            f"volume {leg.volume_id} is reserved for instance {request.instance_id} as {leg.mode}, not {request.mode}",
            facts={"identifier": leg.id},
        )
        for leg in mine
        if takes_over(request, leg) and leg.mode != request.mode
    ]


def takes_over(request: AttachRequest, leg: Attachment) -> bool:
    """Whether *leg* is the reservation that *request* turns into an attachment."""
    pair = (leg.volume_id, leg.instance_id) == (request.volume_id, request.instance_id)
    return pair and leg.state is State.HELD and leg.role == "main" and request.host is not None


def _exclusive(request: AttachRequest, volume: Volume, legs: Sequence[Attachment]) -> list[Violation]:
    others = [leg for leg in legs if leg.instance_id != request.instance_id]
    if volume.multiattach or not others:
        return []
    users = sorted({leg.instance_id for leg in others})
    return [
        Violation(
            "exclusive",
            f"volume {volume.id} is exclusive and instance {users[0]} has it (attachment {others[0].id}, "
            f"{others[0].state}); detach it first, or use a multi-attach volume",
            error=InUse,
            facts={"identifier": volume.id, "users": users},
        )
    ]


def _status(volume: Volume, legs: Sequence[Attachment]) -> list[Violation]:
    if volume.status in {"available", "downloading"} or (volume.status == "in-use" and volume.multiattach):
        return []
    if volume.status in _IN_FLIGHT:
        text = f"volume {volume.id} is {volume.status}; an attach would wait until that is over"
        return [Violation("volume-busy", text, error=VolumeBusy, facts={"identifier": volume.id})]
    if volume.status == "in-use":
        if legs:
            return []  # the rules above say it better
        text = f"volume {volume.id} is exclusive and in use by somebody who is not in the journal"
        return [Violation("exclusive", text, error=InUse, facts={"identifier": volume.id})]
    text = f"volume {volume.id} is {volume.status}: only an available one can be attached, or a multi-attach one in use"
    return [Violation("volume-status", text, facts={"identifier": volume.id})]


def _nature(request: AttachRequest, volume: Volume, features: VolumeFeatures, denied: Sequence[str]) -> list[Violation]:
    found = []
    if volume.encrypted and not features.encryption:
        text = f"volume {volume.id} is encrypted, and the volume service does not say what opens it"
        found.append(Violation("encrypted", text, error=UnsupportedFeature))
    if volume.read_only and request.mode == "rw":
        text = f"volume {volume.id} is read-only; attach it with mode='ro'"
        found.append(Violation("read-only-volume", text, facts={"identifier": volume.id}))
    if volume.multiattach and not features.multiattach:
        text = f"the volume service ({features.microversion}) cannot multi-attach volume {volume.id}"
        facts = {"needed": "3.50", "available": features.microversion}
        found.append(Violation("multiattach-unsupported", text, error=UnsupportedFeature, facts=facts))
    for rule in denied:
        text = f"policy {rule} forbids instance {request.instance_id} volume {volume.id}"
        found.append(Violation(f"policy-{rule}", text, error=PolicyDenied, facts={"rule": rule}))
    return found


def _places(request: AttachRequest, legs: Sequence[Attachment], limits: Limits) -> list[Violation]:
    """Limits of the instance, and places that its other volumes hold; second legs of moves hold the same place."""
    legs = [leg for leg in legs if leg.role == "main" and leg.volume_id != request.volume_id]
    found = []
    if limits.per_instance is not None and len(legs) >= limits.per_instance:
        found.append(_limit("per-instance", f"instance {request.instance_id}", limits.per_instance, len(legs)))
    on_bus = Counter(leg.settings.bus for leg in legs)[request.bus]
    bound = limits.per_bus.get(request.bus)
    if bound is not None and on_bus >= bound:
        found.append(_limit(f"per-bus-{request.bus}", f"bus {request.bus} of {request.instance_id}", bound, on_bus))
    for leg in legs:
        if request.target is not None and leg.settings.target == request.target:
            text = f"target {request.target} of instance {request.instance_id} is taken by volume {leg.volume_id}"
            found.append(Violation("target-taken", text, error=InvalidDisk, facts={"field": "target"}))
        if request.boot_order is not None and leg.settings.boot_order == request.boot_order:
            text = f"boot order {request.boot_order} of {request.instance_id} is taken by volume {leg.volume_id}"
            found.append(Violation("boot-order-taken", text, error=InvalidDisk, facts={"field": "boot_order"}))
    return found


def _limit(code: str, what: str, bound: int, used: int) -> Violation:
    text = f"{what} has {used} volumes, and {bound} are allowed"
    return Violation(f"limit-{code}", text, error=LimitExceeded, facts={"what": what, "limit": bound, "used": used})


def needs_target_lock(backend: Settings | Volume, *, manual_scan: bool) -> bool:
    """Whether connecting and disconnecting on a host must be serialised with every other volume of the backend.

    Three-valued, as Cinder says it from 3.69 on: False never; True unless the initiator scans only by hand; None
    always, because its initiator (NVMe-oF) scans by itself, or because nobody knows.
    """
    return backend.shared_targets is None or (backend.shared_targets and not manual_scan)


def plan(request: AttachRequest, volume: Volume, found: Sequence[Violation], *, target_lock: str | None) -> AttachPlan:
    """Put a plan together from what :func:`violations` found."""
    steps = {
        "write the intent to the journal": "mark it absent",
        f"reserve volume {volume.id} for instance {request.instance_id}, {request.mode}": "delete the attachment",
    }
    if request.host is None:
        steps["complete the attachment, without a host"] = "delete the attachment"
    else:
        steps |= {
            f"give the volume service the connector of host {request.host}": "delete the attachment",
            f"connect host {request.host}, and verify the device": "disconnect, if it is the last user on the host",
            f"give the disk to the guest on {request.host}": "take it out of the guest",
            "complete the attachment": "take it out of the guest, disconnect, delete",
        }
    locks = [f"volume/{volume.id}"] + ([target_lock] if target_lock else [])
    return AttachPlan(
        request=request,
        volume=volume,
        violations=tuple(found),
        locks=tuple(locks),
        steps=tuple(steps),
        compensations=tuple(steps.values()),
    )
