"""What every hypervisor adapter promises, as tests.

A third party's adapter is tested like this::

    class TestMyHypervisor(HypervisorContract):
        @pytest.fixture
        def hypervisor(self):
            with MyHypervisor(...) as hypervisor:
                yield hypervisor
                hypervisor.check()

        @pytest.fixture
        def guests(self):
            return MyGuests()                      # a GuestHarness

pytest is needed to run it, not to import it.
"""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

import attrs

from cloudcore.disks import DetachOutcome, Disk, DiskBus, FileSource, GuestDisks, LuksEncryption, RbdSource
from cloudcore.errors import (
    CloudcoreError,
    Conflict,
    DeviceNotFound,
    GuestNotFound,
    InvalidArgument,
    InvalidDisk,
    LimitExceeded,
)
from cloudcore.hypervisor import HostFacts, Hypervisor, build_tree

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloudcore.disks import DiskSource

__all__ = ["GuestHarness", "HypervisorContract"]


class GuestHarness(Protocol):
    """How the tests come by guests. Each guest is for one test at a time and has no volumes at its beginning."""

    def running(self) -> str:
        """Instance id of a guest that runs and lets disks go when asked."""

    def off(self) -> str:
        """Instance id of a guest that is switched off."""

    def pause(self, instance_id: str) -> None:
        """Stop its processors: it answers nothing."""

    def resume(self, instance_id: str) -> None:
        """Let it go on."""

    def source(self) -> DiskSource:
        """A new image of at least 4 MiB that several guests may open."""

    def slots(self) -> int | None:
        """How many more disks a guest from :meth:`running` can have, None when nobody knows."""


def _new_id() -> str:
    return str(uuid.uuid4())


def _expect(error: type[CloudcoreError], call: Callable[[], object]) -> CloudcoreError:
    try:
        answer = call()
    except error as caught:
        return caught
    raise AssertionError(f"expected {error.__name__}, got {answer!r}")


def _finish_detach(hypervisor: GuestDisks, instance_id: str, volume_id: str) -> None:
    """A willing guest may be slow on a busy machine: pending is no failure, never finishing is."""
    for _ in range(10):
        if hypervisor.detach_disk(instance_id, volume_id) is DetachOutcome.DETACHED:
            return
    raise AssertionError(f"guest {instance_id} does not let volume {volume_id} go")


class HypervisorContract:
    """The promises of :class:`~cloudcore.hypervisor.Hypervisor`. Subclass it and give the two fixtures."""

    def _disk(self, guests: GuestHarness, **changes: Any) -> Disk:
        disk = Disk(volume_id=_new_id(), source=guests.source())
        return attrs.evolve(disk, **changes)

    def test_it_is_a_hypervisor(self, hypervisor: Hypervisor) -> None:
        """It has every method of the interface, and a name."""
        assert isinstance(hypervisor, Hypervisor)
        assert isinstance(hypervisor, GuestDisks)
        assert hypervisor.host == hypervisor.host != ""

    def test_facts_make_a_tree(self, hypervisor: Hypervisor) -> None:
        """They survive JSON, and what they say can be offered."""
        facts = hypervisor.facts()
        assert HostFacts.from_json(facts.to_json()) == facts
        tree = build_tree(facts)
        assert sum(one.total for provider in tree for one in provider.inventories if one.resource_class == "VCPU")

    def test_a_running_guest_gets_a_disk_live_and_for_good(self, hypervisor: Hypervisor, guests: GuestHarness) -> None:
        """Both definitions have it, as read back, under one device name."""
        instance_id, disk = guests.running(), self._disk(guests, shareable=True, read_only=True)
        state = hypervisor.attach_disk(instance_id, disk)
        assert state == hypervisor.disk_state(instance_id, disk.volume_id)
        assert state.live is not None
        assert state.live == state.persistent
        assert (state.live.volume_id, state.live.source) == (disk.volume_id, disk.source)
        assert (state.live.read_only, state.live.shareable, state.live.cache) == (True, True, "none")
        assert state.live.target is not None
        assert state in hypervisor.disk_states()
        _finish_detach(hypervisor, instance_id, disk.volume_id)
        assert not hypervisor.disk_state(instance_id, disk.volume_id).present

    def test_a_guest_that_is_off_gets_a_disk_for_its_next_start(
        self, hypervisor: Hypervisor, guests: GuestHarness
    ) -> None:
        """Only the persistent definition has it, and detaching takes effect at once."""
        instance_id, disk = guests.off(), self._disk(guests)
        state = hypervisor.attach_disk(instance_id, disk)
        assert state.live is None
        assert state.persistent is not None
        assert hypervisor.detach_disk(instance_id, disk.volume_id) is DetachOutcome.DETACHED
        assert not hypervisor.disk_state(instance_id, disk.volume_id).present

    def test_repeating_changes_nothing(self, hypervisor: Hypervisor, guests: GuestHarness) -> None:
        """Attaching what is attached and detaching what is gone succeed."""
        instance_id, disk = guests.running(), self._disk(guests)
        first = hypervisor.attach_disk(instance_id, disk)
        assert hypervisor.attach_disk(instance_id, disk) == first
        assert sum(one.volume_id == disk.volume_id for one in hypervisor.disk_states()) == 1
        _finish_detach(hypervisor, instance_id, disk.volume_id)
        assert hypervisor.detach_disk(instance_id, disk.volume_id) is DetachOutcome.DETACHED

    def test_ids_in_other_forms_are_the_same_ids(self, hypervisor: Hypervisor, guests: GuestHarness) -> None:
        """Upper case and braces are normalised, everything else is refused."""
        instance_id, disk = guests.off(), self._disk(guests)
        hypervisor.attach_disk(instance_id.upper(), attrs.evolve(disk, volume_id=f"{{{disk.volume_id.upper()}}}"))
        assert hypervisor.disk_state(instance_id, disk.volume_id).present
        assert hypervisor.detach_disk(instance_id, disk.volume_id.upper()) is DetachOutcome.DETACHED
        secret_id = _new_id()
        for form in (secret_id.upper(), secret_id):
            encrypted = attrs.evolve(disk, encryption=LuksEncryption(secret_id=form))
            state = hypervisor.attach_disk(instance_id, encrypted)
            assert state.persistent is not None
            assert state.persistent.encryption == LuksEncryption(secret_id=secret_id)
        assert hypervisor.detach_disk(instance_id, disk.volume_id) is DetachOutcome.DETACHED
        _expect(InvalidArgument, lambda: hypervisor.disk_state("guest-1", disk.volume_id))
        _expect(InvalidArgument, lambda: hypervisor.detach_disk(instance_id, "volume-1"))
        _expect(InvalidDisk, lambda: hypervisor.attach_disk(instance_id, attrs.evolve(disk, volume_id="vol")))

    def test_unknown_guests_and_disks(self, hypervisor: Hypervisor, guests: GuestHarness) -> None:
        """A guest that is not there has nothing, cannot get anything, and has let everything go."""
        unknown, disk = _new_id(), self._disk(guests)
        _expect(GuestNotFound, lambda: hypervisor.attach_disk(unknown, disk))
        assert hypervisor.detach_disk(unknown, disk.volume_id) is DetachOutcome.DETACHED
        assert not hypervisor.disk_state(unknown, disk.volume_id).present
        _expect(GuestNotFound, lambda: hypervisor.resize_disk(unknown, disk.volume_id, 8 << 20))
        instance_id = guests.off()
        assert hypervisor.detach_disk(instance_id, disk.volume_id) is DetachOutcome.DETACHED
        _expect(DeviceNotFound, lambda: hypervisor.resize_disk(instance_id, disk.volume_id, 8 << 20))

    def test_what_no_guest_can_have_is_refused(self, hypervisor: Hypervisor, guests: GuestHarness) -> None:
        """Before any effect, and naming the field."""
        instance_id, disk = guests.running(), self._disk(guests)
        wrong: list[tuple[str, dict[str, Any]]] = [
            ("cache", {"cache": "sometimes"}),
            ("io", {"io": "fast"}),
            ("discard", {"discard": "maybe"}),
            ("target", {"target": "sda"}),
            ("target", {"target": "../vda"}),
            ("logical_block_size", {"logical_block_size": 1000}),
            ("boot_order", {"boot_order": 0}),
            ("bus", {"bus": DiskBus.IDE}),
            ("source", {"source": FileSource("relative.img")}),
            ("source", {"source": RbdSource(pool="p", image="i", hosts=())}),
            ("source", {"source": FileSource("/no\x01path")}),
            ("source", {"source": FileSource("/no\0path")}),
            ("source", {"source": FileSource("/half of a pair\ud800")}),
            ("source", {"source": FileSource("/end of a\nline")}),
            ("source", {"source": RbdSource(pool="p", image="i", hosts=(("\x7f\x1f", 1),))}),
        ]
        for field, changes in wrong:
            error = _expect(
                InvalidDisk,
                lambda changes=changes: hypervisor.attach_disk(  # type: ignore[misc]
                    instance_id, attrs.evolve(disk, **changes)
                ),
            )
            assert getattr(error, "field", None) == field, error
        assert not hypervisor.disk_state(instance_id, disk.volume_id).present
        assert not any(state.volume_id == disk.volume_id for state in hypervisor.disk_states())

    def test_a_device_name_that_is_taken_is_refused(self, hypervisor: Hypervisor, guests: GuestHarness) -> None:
        """An asked-for name is kept or refused, never replaced."""
        instance_id = guests.off()
        first, second = self._disk(guests, target="vdf"), self._disk(guests, target="vdf")
        state = hypervisor.attach_disk(instance_id, first)
        assert state.persistent is not None
        assert state.persistent.target == "vdf"
        _expect(InvalidDisk, lambda: hypervisor.attach_disk(instance_id, second))
        assert not hypervisor.disk_state(instance_id, second.volume_id).present
        hypervisor.detach_disk(instance_id, first.volume_id)

    def test_the_same_volume_in_another_way_is_a_conflict(self, hypervisor: Hypervisor, guests: GuestHarness) -> None:
        """Another image or mode under the same volume id changes nothing."""
        instance_id, disk = guests.off(), self._disk(guests)
        before = hypervisor.attach_disk(instance_id, disk)
        for other in ({"source": guests.source()}, {"read_only": True}, {"shareable": True}, {"target": "vdq"}):
            _expect(Conflict, lambda other=other: hypervisor.attach_disk(instance_id, attrs.evolve(disk, **other)))  # type: ignore[misc]
        assert hypervisor.disk_state(instance_id, disk.volume_id) == before
        hypervisor.detach_disk(instance_id, disk.volume_id)

    def test_a_paused_guest_keeps_a_disk_until_it_goes_on(self, hypervisor: Hypervisor, guests: GuestHarness) -> None:
        """Pending is a state: it can be asked for again, attaching is refused meanwhile, and it ends by itself."""
        instance_id, disk = guests.running(), self._disk(guests)
        hypervisor.attach_disk(instance_id, disk)
        guests.pause(instance_id)
        assert hypervisor.detach_disk(instance_id, disk.volume_id) is DetachOutcome.PENDING
        state = hypervisor.disk_state(instance_id, disk.volume_id)
        assert (state.live is not None, state.persistent) == (True, None)
        assert hypervisor.detach_disk(instance_id, disk.volume_id) is DetachOutcome.PENDING
        _expect(Conflict, lambda: hypervisor.attach_disk(instance_id, disk))
        guests.resume(instance_id)
        _finish_detach(hypervisor, instance_id, disk.volume_id)
        assert not hypervisor.disk_state(instance_id, disk.volume_id).present

    def test_a_paused_guest_can_be_given_a_disk(self, hypervisor: Hypervisor, guests: GuestHarness) -> None:
        """It sees it when it goes on."""
        instance_id, disk = guests.running(), self._disk(guests)
        guests.pause(instance_id)
        state = hypervisor.attach_disk(instance_id, disk)
        assert state.live is not None
        guests.resume(instance_id)
        _finish_detach(hypervisor, instance_id, disk.volume_id)

    def test_attaching_at_once_gives_each_its_own_device(self, hypervisor: Hypervisor, guests: GuestHarness) -> None:
        """Threads that pick a free name at the same moment do not get the same one."""
        instance_id, disks = guests.running(), [self._disk(guests) for _ in range(3)]
        with ThreadPoolExecutor(3) as pool:
            states = list(pool.map(lambda disk: hypervisor.attach_disk(instance_id, disk), disks))
        live, persistent = ({getattr(state, which).target for state in states} for which in ("live", "persistent"))
        assert len(live) == 3
        assert live == persistent
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda disk: _finish_detach(hypervisor, instance_id, disk.volume_id), disks))
        assert not any(hypervisor.disk_state(instance_id, disk.volume_id).present for disk in disks)

    def test_one_volume_attached_and_detached_by_many(self, hypervisor: Hypervisor, guests: GuestHarness) -> None:
        """The same call from several threads has one effect, whoever wins."""
        instance_id, disk = guests.running(), self._disk(guests)

        def attach(_: int) -> object:
            try:
                return hypervisor.attach_disk(instance_id, disk)
            except Conflict as conflict:  # it saw a device name that another thread was just giving up
                return conflict

        with ThreadPoolExecutor(3) as pool:
            list(pool.map(attach, range(3)))
        assert hypervisor.attach_disk(instance_id, disk).present
        assert sum(one.volume_id == disk.volume_id for one in hypervisor.disk_states()) == 1
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda _: _finish_detach(hypervisor, instance_id, disk.volume_id), range(3)))
        assert not hypervisor.disk_state(instance_id, disk.volume_id).present

    def test_no_slot_is_left(self, hypervisor: Hypervisor, guests: GuestHarness) -> None:
        """One disk too many is refused and leaves nothing behind in either definition."""
        slots = guests.slots()
        if slots is None:
            return
        instance_id = guests.running()
        disks = [self._disk(guests) for _ in range(slots + 1)]
        for disk in disks[:-1]:
            hypervisor.attach_disk(instance_id, disk)
        _expect(LimitExceeded, lambda: hypervisor.attach_disk(instance_id, disks[-1]))
        assert not hypervisor.disk_state(instance_id, disks[-1].volume_id).present
        for disk in disks[:-1]:
            _finish_detach(hypervisor, instance_id, disk.volume_id)

    def test_resizing(self, hypervisor: Hypervisor, guests: GuestHarness) -> None:
        """A running guest is told; for one that is off there is nothing to do; nonsense is refused."""
        instance_id, disk = guests.running(), self._disk(guests)
        hypervisor.attach_disk(instance_id, disk)
        hypervisor.resize_disk(instance_id, disk.volume_id, 8 << 20)
        _expect(InvalidArgument, lambda: hypervisor.resize_disk(instance_id, disk.volume_id, 0))
        _expect(DeviceNotFound, lambda: hypervisor.resize_disk(instance_id, _new_id(), 8 << 20))
        _finish_detach(hypervisor, instance_id, disk.volume_id)
        off = guests.off()
        hypervisor.attach_disk(off, disk)
        hypervisor.resize_disk(off, disk.volume_id, 8 << 20)
        hypervisor.detach_disk(off, disk.volume_id)

    def test_secrets(self, hypervisor: Hypervisor) -> None:
        """Defined twice is defined; other kinds are refused."""
        secret_id = _new_id()
        for value in (b"first", b"second"):
            hypervisor.define_secret(secret_id, kind="ceph", name=f"client.{secret_id}", value=value)
        _expect(InvalidArgument, lambda: hypervisor.define_secret(secret_id, kind="tls", name="x", value=b""))
        _expect(InvalidArgument, lambda: hypervisor.define_secret("no", kind="ceph", name="x", value=b""))
        _expect(InvalidArgument, lambda: hypervisor.define_secret(secret_id, kind="ceph", name="\x01", value=b""))

    def test_closing_twice(self, hypervisor: Hypervisor) -> None:
        """Closing is repeatable."""
        hypervisor.close()
        hypervisor.close()
