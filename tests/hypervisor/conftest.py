"""Hosts for the hypervisor tests."""

from __future__ import annotations

import pytest

from tests import services


@pytest.fixture(scope="session")
def guest_host() -> services.LibvirtHost:
    """A private libvirt daemon with QEMU, shared with other tests: never killed."""
    services.require("qemu", "guest")
    return services.libvirt_hosts(1)[0]
