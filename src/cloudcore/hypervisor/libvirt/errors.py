"""libvirt's errors in terms of cloudcore's tree, its code kept. Tables and text, no libvirt import.

Codes are those of ``virterror.h``; which of them come when was observed with libvirt 9.0 and QEMU 7.2.
"""

from __future__ import annotations

import re
from typing import Any, Final

import attrs

from cloudcore.errors import (
    CloudcoreError,
    DeadlineExceeded,
    DeviceNotFound,
    GuestAgentUnavailable,
    GuestBusy,
    GuestNotFound,
    HypervisorError,
    HypervisorUnavailable,
    InUse,
    InvalidDisk,
    LimitExceeded,
    UnsupportedFeature,
)

__all__ = ["Failure", "cloudcore_error", "connection_lost", "is_missing_device", "is_missing_guest", "target_taken"]

INTERNAL_ERROR: Final = 1
NO_SUPPORT: Final = 3
NO_CONNECT: Final = 5
INVALID_CONN: Final = 6
OPERATION_FAILED: Final = 9
XML_ERROR: Final = 27
SYSTEM_ERROR: Final = 38
RPC: Final = 39
NO_DOMAIN: Final = 42
AUTH_FAILED: Final = 45
OPERATION_INVALID: Final = 55
NO_SECRET: Final = 66
CONFIG_UNSUPPORTED: Final = 67
OPERATION_TIMEOUT: Final = 68
ARGUMENT_UNSUPPORTED: Final = 74
OPERATION_UNSUPPORTED: Final = 84
AGENT_UNRESPONSIVE: Final = 86
ACCESS_DENIED: Final = 88
DEVICE_MISSING: Final = 99

_BUSY_SECONDS: Final = 5.0  # for which the power indicator of a PCIe slot blinks
_FROM_RPC: Final = 7  # VIR_FROM_RPC: the error is that of the connection, not of what was asked
_FROM_REMOTE: Final = 13
_LOST_WORDS = (
    "client socket is closed",
    "connection closed",
    "cannot recv data",
    "cannot write data",
    "end of file while reading",
)
_FULL_WORDS = ("no more available pci slots", "no more available", "no free slot", "too many drives", "exceeds bus")
_LOCK_WORDS = ('get "write" lock', 'get shared "write" lock', 'get "consistent read" lock')
_BUSY_WORDS = (  # QEMU: the guest is still taking in an earlier plug, or a migration is under way
    "guest is busy",
    "power indicator blinking",
    "not allowed while migrating",
)
_UNPLUG_WORDS = ("in the process of unplug", "unplug already in progress")  # QEMU: the latter on POWER
_QUOTED = re.compile(r"'[^']*'")
_TAKEN_WORDS = ("duplicated for disk sources", "already exists")


@attrs.frozen(kw_only=True)
class Failure:
    """What libvirt said. *domain* is the part of libvirt that it comes from (``VIR_FROM_*``)."""

    code: int
    domain: int
    message: str

    def says(self, *words: str) -> bool:
        """Whether the text has any of *words*. What is in quotes is a caller's: a path may be called anything."""
        text = _QUOTED.sub("''", self.message).lower()
        return any(word.lower() in text for word in words)


def connection_lost(failure: Failure) -> bool:
    """The connection is of no use any more: whatever was asked may or may not have been done."""
    if failure.code in {INVALID_CONN, NO_CONNECT}:
        return True
    if failure.domain in {_FROM_RPC, _FROM_REMOTE} and failure.code in {SYSTEM_ERROR, RPC, INTERNAL_ERROR}:
        return True
    return failure.code == INTERNAL_ERROR and failure.says(*_LOST_WORDS)


def is_missing_guest(failure: Failure) -> bool:
    """There is no such guest."""
    return failure.code == NO_DOMAIN


def is_missing_device(failure: Failure) -> bool:
    """The guest has no such device: for a detach that is success."""
    if failure.code == DEVICE_MISSING:
        return True
    if failure.code == OPERATION_FAILED:
        return failure.says("not found")
    return failure.code == INTERNAL_ERROR and failure.says("no device found with alias")


def unplug_running(failure: Failure) -> bool:
    """An earlier request to unplug is still with the guest."""
    return failure.code in {INTERNAL_ERROR, OPERATION_FAILED} and failure.says(*_UNPLUG_WORDS)


def guest_busy(failure: Failure) -> bool:
    """The guest can be asked in a moment, not now: nothing was done."""
    return failure.code in {INTERNAL_ERROR, OPERATION_FAILED} and failure.says(*_BUSY_WORDS)


def target_taken(failure: Failure) -> bool:
    """Another disk has this device name or unit by now, or this alias: that of a volume that was plugged twice."""
    if failure.code == CONFIG_UNSUPPORTED and failure.says("non unique alias"):
        return True
    if failure.says("already contains a disk with that address"):
        return True
    return failure.code in {XML_ERROR, OPERATION_INVALID, OPERATION_FAILED} and failure.says(*_TAKEN_WORDS)


def cloudcore_error(failure: Failure, what: str, *, uri: str, identifier: str | None = None) -> CloudcoreError:
    """The error to raise for *failure* of *what*."""
    text = f"{what}: libvirt: {failure.message} (code {failure.code})"
    if connection_lost(failure):
        return HypervisorUnavailable(text, uri=uri, code=failure.code)
    if is_missing_guest(failure):
        return GuestNotFound(text, identifier=identifier)
    if failure.code in {AGENT_UNRESPONSIVE, ARGUMENT_UNSUPPORTED} and failure.says("agent"):
        return GuestAgentUnavailable(text, identifier=identifier)
    if is_missing_device(failure):
        return DeviceNotFound(text, identifier=identifier)
    if guest_busy(failure):
        return GuestBusy(f"{text}: ask again in a few seconds", identifier=identifier, retry_after=_BUSY_SECONDS)
    if failure.code == OPERATION_TIMEOUT:
        return DeadlineExceeded(text)
    if failure.code in {INTERNAL_ERROR, OPERATION_FAILED} and failure.says(*_LOCK_WORDS):
        return InUse(f"{text}: another guest has the image, and not both share it", identifier=identifier)
    if failure.says(*_FULL_WORDS):
        return LimitExceeded(f"{text}: the guest has no free slot", what="disks of the guest")
    if failure.code in {NO_SUPPORT, OPERATION_UNSUPPORTED}:
        return UnsupportedFeature(text)
    if failure.code == NO_SECRET:
        return InvalidDisk(f"{text}: define the secret on this host first", field="secret_id")
    if target_taken(failure) or failure.code in {XML_ERROR, CONFIG_UNSUPPORTED}:
        return InvalidDisk(text)
    return HypervisorError(text, code=failure.code)


def failure_of(error: Any) -> Failure:
    """What a ``libvirt.libvirtError`` says."""
    return Failure(
        code=error.get_error_code() or 0,
        domain=error.get_error_domain() or 0,
        message=(error.get_error_message() or str(error)).strip(),
    )
