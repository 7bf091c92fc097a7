"""Hosts for the hypervisor tests."""

from __future__ import annotations

import pytest

from tests import services


@pytest.fixture(scope="session")
def guest_host() -> services.LibvirtHost:
    """A private libvirt daemon with QEMU, shared with other tests: never killed."""
    services.require("qemu", "guest")
    return services.libvirt_hosts(1)[0]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give a test another try when its daemon has crashed, and for no other reason.

    libvirt 9.0's daemon was seen to die of a segmentation fault in one of its own worker threads. Elsewhere a service
    manager starts it again; here the fixtures do, at the next try.
    """
    crashed = pytest.mark.flaky(reruns=2, only_rerun=["libvirt-sock': Connection refused"])
    for item in items:
        group = item.get_closest_marker("xdist_group")
        if group is not None and group.args == ("guests",):
            item.add_marker(crashed)
