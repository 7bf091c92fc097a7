"""Volume attachments: the manager, the volume services, and the interfaces of what they drive."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cloudcore._lazy import lazy_exports

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloudcore.attach.audit.auditor import HealReport
    from cloudcore.attach.audit.findings import AuditReport, Finding
    from cloudcore.attach.hosts.brick import BrickConnector
    from cloudcore.attach.hosts.connectors import ConnectionKeeper, HostConnector, PlainConnector
    from cloudcore.attach.hosts.guests import MemoryGuests
    from cloudcore.attach.lifecycle.fencing import Evidence, Fencer
    from cloudcore.attach.lifecycle.records import (
        Attachment,
        Extension,
        HostDevice,
        HostRefresh,
        InstanceSnapshot,
        ManagerStatus,
        Move,
        RecoveryReport,
        StoryLine,
    )
    from cloudcore.attach.lifecycle.rules import AttachPlan, AttachRequest, Limits, Policy, Violation
    from cloudcore.attach.lifecycle.states import State
    from cloudcore.attach.lifecycle.swapping import SwapPlan, SwapRequest
    from cloudcore.attach.manager import AttachmentManager
    from cloudcore.attach.volumes.cinder import CinderVolumes
    from cloudcore.attach.volumes.embedded import EmbeddedVolumes
    from cloudcore.attach.volumes.interface import VolumeService
    from cloudcore.attach.volumes.values import (
        AttachmentStatus,
        AttachMode,
        ConnectionInfo,
        Connector,
        Volume,
        VolumeAttachment,
        VolumeFeatures,
        VolumeSnapshot,
    )

_EXPORTS = {
    "AttachMode": "cloudcore.attach.volumes.values",
    "AttachPlan": "cloudcore.attach.lifecycle.rules",
    "AttachRequest": "cloudcore.attach.lifecycle.rules",
    "Attachment": "cloudcore.attach.lifecycle.records",
    "ManagerStatus": "cloudcore.attach.lifecycle.records",
    "AttachmentManager": "cloudcore.attach.manager",
    "AttachmentStatus": "cloudcore.attach.volumes.values",
    "AuditReport": "cloudcore.attach.audit.findings",
    "BrickConnector": "cloudcore.attach.hosts.brick",
    "CinderVolumes": "cloudcore.attach.volumes.cinder",
    "ConnectionInfo": "cloudcore.attach.volumes.values",
    "ConnectionKeeper": "cloudcore.attach.hosts.connectors",
    "Connector": "cloudcore.attach.volumes.values",
    "EmbeddedVolumes": "cloudcore.attach.volumes.embedded",
    "Evidence": "cloudcore.attach.lifecycle.fencing",
    "Extension": "cloudcore.attach.lifecycle.records",
    "Fencer": "cloudcore.attach.lifecycle.fencing",
    "Finding": "cloudcore.attach.audit.findings",
    "HealReport": "cloudcore.attach.audit.auditor",
    "HostConnector": "cloudcore.attach.hosts.connectors",
    "HostDevice": "cloudcore.attach.lifecycle.records",
    "HostRefresh": "cloudcore.attach.lifecycle.records",
    "InstanceSnapshot": "cloudcore.attach.lifecycle.records",
    "Limits": "cloudcore.attach.lifecycle.rules",
    "MemoryGuests": "cloudcore.attach.hosts.guests",
    "Move": "cloudcore.attach.lifecycle.records",
    "PlainConnector": "cloudcore.attach.hosts.connectors",
    "Policy": "cloudcore.attach.lifecycle.rules",
    "RecoveryReport": "cloudcore.attach.lifecycle.records",
    "State": "cloudcore.attach.lifecycle.states",
    "StoryLine": "cloudcore.attach.lifecycle.records",
    "SwapPlan": "cloudcore.attach.lifecycle.swapping",
    "SwapRequest": "cloudcore.attach.lifecycle.swapping",
    "Violation": "cloudcore.attach.lifecycle.rules",
    "Volume": "cloudcore.attach.volumes.values",
    "VolumeAttachment": "cloudcore.attach.volumes.values",
    "VolumeFeatures": "cloudcore.attach.volumes.values",
    "VolumeSnapshot": "cloudcore.attach.volumes.values",
    "VolumeService": "cloudcore.attach.volumes.interface",
}

__all__ = [
    "AttachMode",
    "AttachPlan",
    "AttachRequest",
    "Attachment",
    "AttachmentManager",
    "AttachmentStatus",
    "AuditReport",
    "BrickConnector",
    "CinderVolumes",
    "ConnectionInfo",
    "ConnectionKeeper",
    "Connector",
    "EmbeddedVolumes",
    "Evidence",
    "Extension",
    "Fencer",
    "Finding",
    "HealReport",
    "HostConnector",
    "HostDevice",
    "HostRefresh",
    "InstanceSnapshot",
    "Limits",
    "ManagerStatus",
    "MemoryGuests",
    "Move",
    "PlainConnector",
    "Policy",
    "RecoveryReport",
    "State",
    "StoryLine",
    "SwapPlan",
    "SwapRequest",
    "Violation",
    "Volume",
    "VolumeAttachment",
    "VolumeFeatures",
    "VolumeService",
    "VolumeSnapshot",
]

__getattr__: Callable[[str], Any]
__dir__: Callable[[], list[str]]
__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
