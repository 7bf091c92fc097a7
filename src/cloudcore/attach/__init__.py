"""Volume attachments: the manager, the volume services, and the interfaces of what they drive."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cloudcore._lazy import lazy_exports

if TYPE_CHECKING:
    from cloudcore.attach.auditing import AuditReport, Finding
    from cloudcore.attach.brick import BrickConnector
    from cloudcore.attach.cinder import CinderVolumes
    from cloudcore.attach.embedded import EmbeddedVolumes
    from cloudcore.attach.fencing import Evidence, Fencer
    from cloudcore.attach.guests import MemoryGuests
    from cloudcore.attach.healing import HealReport
    from cloudcore.attach.hosts import HostConnector, PlainConnector
    from cloudcore.attach.manager import AttachmentManager
    from cloudcore.attach.records import Attachment, Extension, HostDevice, Move, StoryLine
    from cloudcore.attach.recovery import RecoveryReport
    from cloudcore.attach.rules import AttachPlan, AttachRequest, Limits, Policy, Violation
    from cloudcore.attach.states import State
    from cloudcore.attach.volumes import (
        AttachmentStatus,
        AttachMode,
        ConnectionInfo,
        Connector,
        Volume,
        VolumeAttachment,
        VolumeFeatures,
        VolumeService,
    )

_EXPORTS = {
    "AttachMode": "cloudcore.attach.volumes",
    "AttachPlan": "cloudcore.attach.rules",
    "AttachRequest": "cloudcore.attach.rules",
    "Attachment": "cloudcore.attach.records",
    "AttachmentManager": "cloudcore.attach.manager",
    "AttachmentStatus": "cloudcore.attach.volumes",
    "AuditReport": "cloudcore.attach.auditing",
    "BrickConnector": "cloudcore.attach.brick",
    "CinderVolumes": "cloudcore.attach.cinder",
    "ConnectionInfo": "cloudcore.attach.volumes",
    "Connector": "cloudcore.attach.volumes",
    "EmbeddedVolumes": "cloudcore.attach.embedded",
    "Evidence": "cloudcore.attach.fencing",
    "Extension": "cloudcore.attach.records",
    "Fencer": "cloudcore.attach.fencing",
    "Finding": "cloudcore.attach.auditing",
    "HealReport": "cloudcore.attach.healing",
    "HostConnector": "cloudcore.attach.hosts",
    "HostDevice": "cloudcore.attach.records",
    "Limits": "cloudcore.attach.rules",
    "MemoryGuests": "cloudcore.attach.guests",
    "Move": "cloudcore.attach.records",
    "PlainConnector": "cloudcore.attach.hosts",
    "Policy": "cloudcore.attach.rules",
    "RecoveryReport": "cloudcore.attach.recovery",
    "State": "cloudcore.attach.states",
    "StoryLine": "cloudcore.attach.records",
    "Violation": "cloudcore.attach.rules",
    "Volume": "cloudcore.attach.volumes",
    "VolumeAttachment": "cloudcore.attach.volumes",
    "VolumeFeatures": "cloudcore.attach.volumes",
    "VolumeService": "cloudcore.attach.volumes",
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
    "Connector",
    "EmbeddedVolumes",
    "Evidence",
    "Extension",
    "Fencer",
    "Finding",
    "HealReport",
    "HostConnector",
    "HostDevice",
    "Limits",
    "MemoryGuests",
    "Move",
    "PlainConnector",
    "Policy",
    "RecoveryReport",
    "State",
    "StoryLine",
    "Violation",
    "Volume",
    "VolumeAttachment",
    "VolumeFeatures",
    "VolumeService",
]

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
