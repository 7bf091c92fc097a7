"""Compute hosts: their guests' disks, and what they are as resource providers.

* :class:`Hypervisor` is the interface; :class:`LibvirtHypervisor` and :class:`MemoryHypervisor` fulfil it.
* :class:`HostFacts` says what a host is; :func:`build_tree` makes of it the provider tree that it should have, under a
  :class:`HostPolicy`; :func:`diff` compares with what is there; :func:`explain` says which fact gave which number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cloudcore._lazy import lazy_exports

if TYPE_CHECKING:
    from cloudcore.hypervisor.applying import ProviderTree, apply, carry_out, read_current, sync
    from cloudcore.hypervisor.comparison import TreeDiff, diff
    from cloudcore.hypervisor.connection import Timeouts
    from cloudcore.hypervisor.explanation import explain
    from cloudcore.hypervisor.facts import HostFacts
    from cloudcore.hypervisor.interface import Hypervisor
    from cloudcore.hypervisor.libvirt_adapter import LibvirtHypervisor
    from cloudcore.hypervisor.memory import Fault, MemoryHypervisor, Unplug
    from cloudcore.hypervisor.policy import DeviceRule, HostPolicy, VgpuRule
    from cloudcore.hypervisor.reshape import Reshape, plan_reshape
    from cloudcore.hypervisor.tree import build_tree
    from cloudcore.hypervisor.values import (
        CurrentInventory,
        CurrentProvider,
        CurrentTree,
        DesiredInventory,
        DesiredProvider,
        DesiredTree,
    )

_EXPORTS = {
    "CurrentInventory": "cloudcore.hypervisor.values",
    "CurrentProvider": "cloudcore.hypervisor.values",
    "CurrentTree": "cloudcore.hypervisor.values",
    "DesiredInventory": "cloudcore.hypervisor.values",
    "DesiredProvider": "cloudcore.hypervisor.values",
    "DesiredTree": "cloudcore.hypervisor.values",
    "DeviceRule": "cloudcore.hypervisor.policy",
    "Fault": "cloudcore.hypervisor.memory",
    "HostFacts": "cloudcore.hypervisor.facts",
    "HostPolicy": "cloudcore.hypervisor.policy",
    "Hypervisor": "cloudcore.hypervisor.interface",
    "LibvirtHypervisor": "cloudcore.hypervisor.libvirt_adapter",
    "MemoryHypervisor": "cloudcore.hypervisor.memory",
    "ProviderTree": "cloudcore.hypervisor.applying",
    "Reshape": "cloudcore.hypervisor.reshape",
    "Timeouts": "cloudcore.hypervisor.connection",
    "TreeDiff": "cloudcore.hypervisor.comparison",
    "Unplug": "cloudcore.hypervisor.memory",
    "VgpuRule": "cloudcore.hypervisor.policy",
    "apply": "cloudcore.hypervisor.applying",
    "carry_out": "cloudcore.hypervisor.applying",
    "build_tree": "cloudcore.hypervisor.tree",
    "diff": "cloudcore.hypervisor.comparison",
    "explain": "cloudcore.hypervisor.explanation",
    "plan_reshape": "cloudcore.hypervisor.reshape",
    "read_current": "cloudcore.hypervisor.applying",
    "sync": "cloudcore.hypervisor.applying",
}

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)

__all__ = [
    "CurrentInventory",
    "CurrentProvider",
    "CurrentTree",
    "DesiredInventory",
    "DesiredProvider",
    "DesiredTree",
    "DeviceRule",
    "Fault",
    "HostFacts",
    "HostPolicy",
    "Hypervisor",
    "LibvirtHypervisor",
    "MemoryHypervisor",
    "ProviderTree",
    "Reshape",
    "Timeouts",
    "TreeDiff",
    "Unplug",
    "VgpuRule",
    "apply",
    "build_tree",
    "carry_out",
    "diff",
    "explain",
    "plan_reshape",
    "read_current",
    "sync",
]
