"""How Cinder's answers are read: versions, volumes, attachments and refusals. Pure: no I/O, no clock.

The rules were read in Cinder 29's source and observed on a running one. They hold for every release since the
attachments API (3.27): where an older one says less, the reading says less.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import TYPE_CHECKING, Any

import attrs

from cloudcore._values import normalise_uuid
from cloudcore.attach.volumes.values import (
    AttachmentStatus,
    ConnectionInfo,
    Volume,
    VolumeAttachment,
    VolumeFeatures,
    VolumeSnapshot,
)
from cloudcore.errors import (
    AttachmentNotFound,
    CloudcoreError,
    Conflict,
    InvalidArgument,
    InvalidConnector,
    LimitExceeded,
    NotFound,
    OutcomeUnknown,
    PolicyDenied,
    UnsupportedFeature,
    VolumeBusy,
    VolumeNotFound,
    VolumeServiceUnavailable,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "GIB",
    "Call",
    "Effect",
    "features_of",
    "judge",
    "negotiate",
    "read_attachment",
    "read_encryption",
    "read_snapshot",
    "read_volume",
    "seconds_to_wait",
    "strange",
]

GIB = 2**30

MINIMUM = (3, 27)
"""Attachments were added here; nothing older can be used."""

MAXIMUM = (3, 71)
"""The newest version whose answers were read and tried."""

BUSY = frozenset({"reserved", "attaching", "detaching"})
"""Statuses of a volume that somebody's attach or detach is holding."""

PASSING = frozenset(
    {"creating", "downloading", "uploading", "extending", "retyping", "backing-up", "restoring-backup", "reverting"}
)
"""Statuses of a volume that something else is holding, and that end by themselves."""


# ------------------------------------------------------------------------------------------------------------- versions


def _version(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)\.(\d+)", text)
    if not found:
        raise InvalidArgument(f"{text!r} is no microversion; they look like 3.71", field="microversion", value=text)
    return int(found[1]), int(found[2])


def negotiate(oldest: str, newest: str, wanted: str | None = None) -> str:
    """Choose the microversion to speak with a server that understands *oldest* to *newest*.

    Args:
        oldest: As the server says.
        newest: As the server says.
        wanted: Upper bound set by the user, such as ``"3.68"``; None for the newest that both sides know.

    Raises:
        UnsupportedFeature: The two sides have no version in common that has attachments (3.27 or later).
        InvalidArgument: One of them is no microversion.
    """
    bound = MAXIMUM if wanted is None else min(MAXIMUM, _version(wanted))
    chosen = min(bound, _version(newest))
    if chosen < MINIMUM or chosen < _version(oldest):
        upper = wanted or "3.71"
        raise UnsupportedFeature(
            f"the volume service speaks {oldest} to {newest}, this client 3.27 to {upper}: no common version has "
            f"attachments",
            field="microversion",
            value=wanted,
            needed="3.27",
            available=newest,
        )
    return f"{chosen[0]}.{chosen[1]}"


def features_of(microversion: str) -> VolumeFeatures:
    """What a service can do when it is spoken to in *microversion*."""
    version = _version(microversion)
    return VolumeFeatures(
        microversion=microversion,
        complete=version >= (3, 44),
        extend_in_use=version >= (3, 42),
        shared_targets=version >= (3, 48),
        multiattach=version >= (3, 50),
        mode=version >= (3, 54),
        encryption=True,
        reimage=version >= (3, 68),
    )


# -------------------------------------------------------------------------------------------------------------- answers


def read_volume(body: Mapping[str, Any], features: VolumeFeatures) -> Volume:
    """Read the ``volume`` of an answer.

    Raises:
        KeyError, TypeError, ValueError: It is not what Cinder answers.
    """
    metadata = body.get("metadata") or {}
    return Volume(
        id=body["id"],
        status=body["status"],
        size=int(body["size"]) * GIB,
        name=body.get("name") or "",
        multiattach=bool(body.get("multiattach", False)),
        bootable=_truth(body.get("bootable")),
        encrypted=bool(body.get("encrypted", False)),
        read_only=_truth(metadata.get("readonly")),
        shared_targets=_shared_targets(body, features),
        service_uuid=body.get("service_uuid"),
        project_id=body.get("os-vol-tenant-attr:tenant_id"),
        volume_type=body.get("volume_type"),
        availability_zone=body.get("availability_zone"),
        migration_status=body.get("os-vol-mig-status-attr:migstat") or body.get("migration_status"),
    )


def read_encryption(body: Mapping[str, Any], volume_id: str) -> str | None:
    """Read the encryption metadata of a volume: the id of its key, None if there is none.

    Raises:
        UnsupportedFeature: It is none that QEMU opens by itself.
        KeyError, TypeError, ValueError: It is not what Cinder answers.
    """
    key = body.get("encryption_key_id")
    if key is None:
        return None
    provider = str(body.get("provider") or "").rpartition(".")[2].lower()
    provider = _OLD_PROVIDERS.get(provider, provider)
    if provider not in {"luks", "luks2"} or body.get("control_location", "front-end") != "front-end":
        raise UnsupportedFeature(
            f"volume {volume_id} is encrypted by {provider or 'something unnamed'}; QEMU opens LUKS only",
            needed="luks",
            available=provider or None,
        )
    return normalise_uuid(key, "encryption_key_id")


_OLD_PROVIDERS = {"luksencryptor": "luks", "cryptsetupencryptor": "plain"}
"""Names of classes, as types of before 2017 have them."""


def _truth(value: Any) -> bool:
    """Cinder says some truths as text."""
    return str(value).lower() == "true"


def _shared_targets(body: Mapping[str, Any], features: VolumeFeatures) -> bool | None:
    """True, False or unknown. Before 3.48 nothing is said; before 3.69 true may stand for unknown; both mean: lock."""
    value = body.get("shared_targets") if features.shared_targets else None
    if value is None or (value and _version(features.microversion or "0.0") < (3, 69)):
        return None
    return bool(value)


def read_snapshot(body: Mapping[str, Any]) -> VolumeSnapshot:
    """Read one ``snapshot`` of an answer.

    Raises:
        KeyError, TypeError, ValueError: It is not what Cinder answers.
    """
    return VolumeSnapshot(
        id=body["id"],
        volume_id=body["volume_id"],
        name=body.get("name") or "",
        size=int(body["size"]) * GIB,
        status=body["status"],
    )


def read_attachment(body: Mapping[str, Any]) -> VolumeAttachment:
    """Read one ``attachment`` of an answer, in its long or its short form.

    Raises:
        KeyError, TypeError, ValueError: It is not what Cinder answers.
    """
    mode = body.get("attach_mode")
    info = body.get("connection_info")
    if info is not None and not isinstance(info, dict):
        raise TypeError("connection_info")
    status = AttachmentStatus(body["status"])
    return VolumeAttachment(
        id=body["id"],
        volume_id=body["volume_id"],
        instance_id=body.get("instance"),
        status=status,
        mode=mode if mode in ("rw", "ro") else None,  # "null", as text, where none was given
        connection=ConnectionInfo.from_cinder(info) if info else None,
        # Cinder notes this instant when it maps the volume already.
        attached_at=_instant(body.get("attached_at")) if status is AttachmentStatus.ATTACHED else None,
    )


def _instant(text: str | None) -> datetime | None:
    """Cinder's instants are in UTC and do not say so; none is an empty text."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC) if text else None


_EMPTY = {
    "complete": (202, 204),
    "extend": (202,),
    "reimage": (202,),
    "delete volume": (202, 204),
    "delete snapshot": (202, 204),
}
"""Calls that Cinder answers without a body, and with which status."""


def strange(call: Call, status: int, body: Any) -> str | None:
    """Why a success cannot be Cinder's answer to *call*; None if it can.

    A login page, a cache or a captive portal says 200 to anything. So each call's own answer is asked for: the effect
    of one that is not it is unknown.

    Args:
        call: What was asked.
        status: Of HTTP, below 400.
        body: None if there is none; what its JSON says; or bytes, if it is no JSON.
    """
    if call.name in _EMPTY:
        allowed = _EMPTY[call.name]
        return None if body is None and status in allowed else f"{status} with {_shape(body)}, not {allowed} and empty"
    if not isinstance(body, dict):
        return f"{status} with {_shape(body)}, not an object"
    if call.name == "delete" and not isinstance(body.get("attachments"), list):
        return "an object without the attachments that are left"
    return None if status in {200, 202, 300} else f"{status}"


def _shape(body: Any) -> str:
    return "nothing" if body is None else "no JSON" if isinstance(body, bytes) else f"a JSON {type(body).__name__}"


def seconds_to_wait(retry_after: str | None, date: str | None) -> float | None:
    """What a ``Retry-After`` header says, in seconds; None if it is missing or malformed.

    It may be an instant, to be compared with the ``Date`` of the same answer.
    """
    if retry_after is None:
        return None
    if re.fullmatch(r"\s*\d{1,6}\s*", retry_after):
        return float(retry_after) or None
    try:
        seconds = (parsedate_to_datetime(retry_after) - parsedate_to_datetime(str(date))).total_seconds()
    except (TypeError, ValueError):
        return None
    return seconds if 0 < seconds < 1_000_000 else None


# ------------------------------------------------------------------------------------------------------------- refusals


class Effect(Enum):
    """What a failed call may have done."""

    NONE = "none"  # it only reads
    ONCE = "once"  # each success has an effect of its own: never repeated
    SAME = "same"  # twice is like once: may be repeated


@attrs.frozen
class Call:
    """One request, as far as its refusals are concerned.

    Attributes:
        name: For texts, such as ``"reserve"``.
        effect: See :class:`Effect`.
        volume_id: The volume that it names, None if it names none.
        attachment_id: The attachment that it names, None if it names none.
        image_id: The image that it names, None if it names none.
        snapshot_id: The snapshot that it names, None if it names none.
    """

    name: str
    effect: Effect
    volume_id: str | None = attrs.field(default=None, kw_only=True)
    attachment_id: str | None = attrs.field(default=None, kw_only=True)
    image_id: str | None = attrs.field(default=None, kw_only=True)
    snapshot_id: str | None = attrs.field(default=None, kw_only=True)

    @property
    def subject(self) -> str:
        """What it is about, for texts."""
        if self.attachment_id:
            return f"attachment {self.attachment_id}"
        if self.snapshot_id:
            return f"snapshot {self.snapshot_id}"
        return f"volume {self.volume_id}" if self.volume_id else "the volume service"

    @property
    def identifier(self) -> str | None:
        """The object that it is about."""
        return self.attachment_id or self.volume_id

    def unknown(self, why: str) -> CloudcoreError:
        """The error for an answer that says nothing about what happened."""
        if self.effect is Effect.NONE:
            return VolumeServiceUnavailable(f"{self.name} of {self.subject}: {why}")
        return OutcomeUnknown(f"{self.name} of {self.subject}: {why}; it may have happened, or happen yet")


_STATUS = re.compile(
    r"status must be (?P<allowed>.+?) to (?:reserve|extend), (?:but the current status is|currently) (?P<now>[\w-]+)"
)
_ERROR_STATUS = re.compile(r"currently has a status of: (?P<now>[\w-]+)")
_FIELD = re.compile(r"Invalid input for field/attribute (?P<field>[\w.:-]+)\.")


def judge(call: Call, code: int, message: str, *, request_id: str | None, retry_after: float | None) -> CloudcoreError:
    """Turn an answer that is no success into the error that tells the truth about it.

    A 5xx is not evidence that nothing happened: Cinder answers 500 when its own time limit has passed while the
    backend goes on working. What Cinder writes into such an answer may quote the backend, secrets included, so none of
    it is passed on; the request id leads to it in Cinder's log.
    """
    where = f"HTTP {code}, request {request_id or 'without id'}"
    if code == 503:
        return VolumeServiceUnavailable(f"{call.name} of {call.subject}: {where}", retry_after=retry_after)
    if code >= 500 or code == 408:
        return call.unknown(where)
    if code == 404:
        return _missing(call, message, where)
    if code == 400:
        return _bad_request(call, message, where)
    if code == 409:
        return Conflict(f"{call.name} of {call.subject} refused: {message} ({where})", identifier=call.identifier)
    if code in (401, 403):
        return PolicyDenied(f"{call.name} of {call.subject} denied: {message} ({where})", rule=call.name)
    if code == 406:
        return UnsupportedFeature(f"{call.name}: {message} ({where})", needed="3.27", available=None)
    if code in (413, 429):
        return _too_much(call, code, message, where, retry_after)
    return VolumeServiceUnavailable(f"{call.name} of {call.subject}: unexpected {where}")


def _missing(call: Call, message: str, where: str) -> CloudcoreError:
    """404. Only one that names the object is about it: that of a wrong URL or of a proxy means that nobody looked."""
    if call.attachment_id and call.attachment_id in message:
        return AttachmentNotFound(f"no attachment {call.attachment_id}", identifier=call.attachment_id)
    if call.volume_id and call.volume_id in message:
        return VolumeNotFound(f"no volume {call.volume_id}", identifier=call.volume_id)
    if call.image_id and call.image_id in message:
        return InvalidArgument(f"{call.name} of {call.subject}: there is no image {call.image_id}", field="image_id")
    if call.snapshot_id and call.snapshot_id in message:
        return NotFound(f"no snapshot {call.snapshot_id}", identifier=call.snapshot_id)
    return VolumeServiceUnavailable(
        f"{call.name} of {call.subject}: {where}, which names neither: is the endpoint right, with its project?"
    )


def _bad_request(call: Call, message: str, where: str) -> CloudcoreError:
    """400 is for malformed input, and for a status that forbids the call now or for good."""
    if found := _ERROR_STATUS.search(message):
        return Conflict(f"{call.name} of {call.subject} refused: it is {found['now']}", identifier=call.identifier)
    if found := _STATUS.search(message):
        return _wrong_status(call, found["allowed"], found["now"])
    if found := _FIELD.match(message):  # the rest of the text repeats the value, and a connector may hold secrets
        return InvalidArgument(f"{call.name} of {call.subject}: malformed {found['field']}", field=found["field"])
    if message.startswith("Invalid input received:") and "onnector" in message:
        return InvalidConnector(f"{call.name} of {call.subject} refused: {message} ({where})", field="connector")
    if message.startswith("Invalid volume:"):
        return Conflict(f"{call.name} of {call.subject} refused: {message} ({where})", identifier=call.identifier)
    return InvalidArgument(f"{call.name} of {call.subject} refused: {message} ({where})")


def _wrong_status(call: Call, allowed: str, now: str) -> CloudcoreError:
    """A status that is itself allowed means that another caller was faster and the text is older than the refusal."""
    if now in BUSY or now in PASSING or now in re.findall(r"[\w-]+", allowed):
        return VolumeBusy(f"{call.name}: volume {call.volume_id} is {now}", identifier=call.volume_id)
    return Conflict(f"{call.name}: volume {call.volume_id} is {now}, it must be {allowed}", identifier=call.volume_id)


def _too_much(call: Call, code: int, message: str, where: str, retry_after: float | None) -> CloudcoreError:
    """413 is both "too fast" and "over quota"; 429 is a proxy's "too fast"."""
    if retry_after or code == 429:
        return VolumeServiceUnavailable(f"{call.name} of {call.subject}: too fast ({where})", retry_after=retry_after)
    return LimitExceeded(f"{call.name} of {call.subject} refused: {message} ({where})", what="quota")
