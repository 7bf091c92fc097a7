"""The contract suite over the adapter in memory and over libvirt with QEMU."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from cloudcore.disks import DiskSource, FileSource
from cloudcore.hypervisor import LibvirtHypervisor, MemoryHypervisor, Timeouts
from cloudcore.testing.hypervisor import HypervisorContract
from tests.hypervisor.domains import Guests


class MemoryGuestHarness:
    def __init__(self, hypervisor: MemoryHypervisor) -> None:
        self._hypervisor = hypervisor

    def _new(self, state: str) -> str:
        instance_id = str(uuid.uuid4())
        self._hypervisor.add_guest(instance_id, state=state, slots=self.slots())
        return instance_id

    def running(self) -> str:
        return self._new("running")

    def off(self) -> str:
        return self._new("off")

    def pause(self, instance_id: str) -> None:
        self._hypervisor.pause(instance_id)

    def resume(self, instance_id: str) -> None:
        self._hypervisor.resume(instance_id)

    def source(self) -> DiskSource:
        return FileSource(f"/images/{uuid.uuid4()}.img")

    def slots(self) -> int:
        return 5


class TestMemoryHypervisor(HypervisorContract):
    @pytest.fixture
    def hypervisor(self) -> Iterator[MemoryHypervisor]:
        with MemoryHypervisor("compute-1") as hypervisor:
            yield hypervisor
            hypervisor.check()

    @pytest.fixture
    def guests(self, hypervisor: MemoryHypervisor) -> MemoryGuestHarness:
        return MemoryGuestHarness(hypervisor)


class LibvirtGuestHarness:
    """One guest that runs and one that is off, shared by the tests one after the other."""

    def __init__(self, made: Guests) -> None:
        self._made = made
        self._running = made.boot(ports=5)
        self._off = made.define()

    def running(self) -> str:
        return self._running

    def off(self) -> str:
        return self._off

    def pause(self, instance_id: str) -> None:
        self._made.domain(instance_id).suspend()

    def resume(self, instance_id: str) -> None:
        self._made.domain(instance_id).resume()

    def source(self) -> DiskSource:
        return self._made.image()

    def slots(self) -> int:
        return 5


@pytest.fixture(scope="module")
def contract_guests(guest_host) -> Iterator[LibvirtGuestHarness]:
    with Guests(guest_host) as made:
        yield LibvirtGuestHarness(made)


@pytest.mark.xdist_group("guests")
class TestLibvirtHypervisor(HypervisorContract):
    @pytest.fixture
    def hypervisor(self, guest_host) -> Iterator[LibvirtHypervisor]:
        with LibvirtHypervisor(guest_host.uri, host="compute-1", timeouts=Timeouts(detach=10)) as hypervisor:
            yield hypervisor
            with LibvirtHypervisor(guest_host.uri) as again:
                again.check()

    @pytest.fixture
    def guests(self, contract_guests: LibvirtGuestHarness) -> LibvirtGuestHarness:
        return contract_guests
