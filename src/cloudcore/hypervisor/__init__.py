"""Compute hosts: their guests' disks, and what they are as resource providers.

* :class:`Hypervisor` is the interface; :class:`LibvirtHypervisor` and :class:`MemoryHypervisor` fulfil it.
* :class:`HostFacts` says what a host is; :func:`build_tree` makes of it the provider tree that it should have, under a
  :class:`HostPolicy`; :func:`diff` compares with what is there; :func:`explain` says which fact gave which number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cloudcore._lazy import lazy_exports

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloudcore.hypervisor.castellan_keys import CastellanKeys
    from cloudcore.hypervisor.disks.memory_driver import Fault, Unplug
    from cloudcore.hypervisor.facts.host import HostFacts
    from cloudcore.hypervisor.interface import Hypervisor
    from cloudcore.hypervisor.libvirt_adapter import LibvirtHypervisor
    from cloudcore.hypervisor.memory import MemoryHypervisor
    from cloudcore.hypervisor.timeouts import Timeouts
    from cloudcore.hypervisor.tree.applying import ProviderTree, apply, carry_out, read_current, sync
    from cloudcore.hypervisor.tree.building import build_tree
    from cloudcore.hypervisor.tree.comparison import TreeDiff, diff
    from cloudcore.hypervisor.tree.explanation import explain
    from cloudcore.hypervisor.tree.policy import DeviceRule, HostPolicy, VgpuRule
    from cloudcore.hypervisor.tree.reshape import Reshape, plan_reshape
    from cloudcore.hypervisor.tree.values import (
        CurrentInventory,
        CurrentProvider,
        CurrentTree,
        DesiredInventory,
        DesiredProvider,
        DesiredTree,
        page_class,
    )

_EXPORTS = {
    "CastellanKeys": "cloudcore.hypervisor.castellan_keys",
    "CurrentInventory": "cloudcore.hypervisor.tree.values",
    "CurrentProvider": "cloudcore.hypervisor.tree.values",
    "CurrentTree": "cloudcore.hypervisor.tree.values",
    "DesiredInventory": "cloudcore.hypervisor.tree.values",
    "DesiredProvider": "cloudcore.hypervisor.tree.values",
    "DesiredTree": "cloudcore.hypervisor.tree.values",
    "DeviceRule": "cloudcore.hypervisor.tree.policy",
    "Fault": "cloudcore.hypervisor.disks.memory_driver",
    "HostFacts": "cloudcore.hypervisor.facts.host",
    "HostPolicy": "cloudcore.hypervisor.tree.policy",
    "Hypervisor": "cloudcore.hypervisor.interface",
    "LibvirtHypervisor": "cloudcore.hypervisor.libvirt_adapter",
    "MemoryHypervisor": "cloudcore.hypervisor.memory",
    "ProviderTree": "cloudcore.hypervisor.tree.applying",
    "Reshape": "cloudcore.hypervisor.tree.reshape",
    "Timeouts": "cloudcore.hypervisor.timeouts",
    "TreeDiff": "cloudcore.hypervisor.tree.comparison",
    "Unplug": "cloudcore.hypervisor.disks.memory_driver",
    "VgpuRule": "cloudcore.hypervisor.tree.policy",
    "apply": "cloudcore.hypervisor.tree.applying",
    "carry_out": "cloudcore.hypervisor.tree.applying",
    "build_tree": "cloudcore.hypervisor.tree.building",
    "diff": "cloudcore.hypervisor.tree.comparison",
    "explain": "cloudcore.hypervisor.tree.explanation",
    "page_class": "cloudcore.hypervisor.tree.values",
    "plan_reshape": "cloudcore.hypervisor.tree.reshape",
    "read_current": "cloudcore.hypervisor.tree.applying",
    "sync": "cloudcore.hypervisor.tree.applying",
}

__getattr__: Callable[[str], Any]
__dir__: Callable[[], list[str]]
__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)

__all__ = [
    "CastellanKeys",
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
    "page_class",
    "plan_reshape",
    "read_current",
    "sync",
]
