"""What every volume service promises, as tests; and a wrapper that makes any of them fail on command.

A third party's service is tested like this::

    class TestMyService(VolumeServiceContract):
        @pytest.fixture
        def volumes(self):
            with MyService(...) as service:
                yield service

        @pytest.fixture
        def new_volume(self):
            return my_function                     # (*, multiattach=False) -> id of an available volume of 1 GiB

pytest is needed to run it, not to import it.
"""

from __future__ import annotations

import functools
import threading
import uuid
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from cloudcore.attach.volumes.interface import VolumeService
from cloudcore.attach.volumes.values import AttachmentStatus, Connector
from cloudcore.errors import (
    AttachmentNotFound,
    CloudcoreError,
    Conflict,
    InUse,
    InvalidArgument,
    VolumeBusy,
    VolumeNotFound,
)

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FakeVolumes", "VolumeServiceContract"]

GIB = 1024**3


def _instance() -> str:
    return str(uuid.uuid4())


def _connector(host: str = "compute-1") -> Connector:
    return Connector(host=host, ip="127.0.0.1", initiator=f"iqn.2026-01.org.cloudcore:{host}")


def _expect(error: type[CloudcoreError], call: Callable[[], object]) -> CloudcoreError:
    try:
        answer = call()
    except error as caught:
        return caught
    raise AssertionError(f"expected {error.__name__}, got {answer!r}")


class VolumeServiceContract:
    """The promises of :class:`~cloudcore.attach.VolumeService`. Subclass it and give the two fixtures."""

    def test_it_is_a_volume_service(self, volumes: VolumeService) -> None:
        """It has every method of the interface, and features that can be asked twice."""
        assert isinstance(volumes, VolumeService)
        assert volumes.features() == volumes.features()

    def test_a_volume_is_described(self, volumes: VolumeService, new_volume: Callable[..., str]) -> None:
        """Ids in their normal form, sizes in bytes."""
        volume_id = new_volume(multiattach=True)
        found = volumes.volume(volume_id.upper())
        assert (found.id, found.status, found.size, found.multiattach) == (volume_id, "available", GIB, True)

    def test_every_volume_is_listed(self, volumes: VolumeService, new_volume: Callable[..., str]) -> None:
        """As it is described by itself."""
        made = [new_volume(), new_volume(multiattach=True)]
        found = {volume.id: volume for volume in volumes.volumes()}
        assert [found[volume_id] for volume_id in made] == [volumes.volume(volume_id) for volume_id in made]

    def test_what_is_not_encrypted_has_no_key(self, volumes: VolumeService, new_volume: Callable[..., str]) -> None:
        """And an unknown volume is none."""
        assert volumes.encryption_key(new_volume()) is None
        _expect(VolumeNotFound, lambda: volumes.encryption_key(_instance()))

    def test_unknown_objects_are_not_found(self, volumes: VolumeService) -> None:
        """The error names the kind of object; listing what is unknown finds nothing; deleting it succeeds."""
        unknown = _instance()
        _expect(VolumeNotFound, lambda: volumes.volume(unknown))
        _expect(VolumeNotFound, lambda: volumes.reserve(unknown, _instance()))
        _expect(VolumeNotFound, lambda: volumes.create(unknown, _instance(), _connector()))
        _expect(AttachmentNotFound, lambda: volumes.attachment(unknown))
        _expect(AttachmentNotFound, lambda: volumes.update(unknown, _connector()))
        _expect(AttachmentNotFound, lambda: volumes.complete(unknown))
        assert volumes.attachments(volume_id=unknown) == ()
        assert volumes.attachments(instance_id=unknown) == ()
        volumes.delete(unknown)
        volumes.delete_volume(unknown)

    def test_malformed_ids_are_refused(self, volumes: VolumeService, new_volume: Callable[..., str]) -> None:
        """Before anything is sent: a service may take them for names."""
        volume_id = new_volume()
        _expect(InvalidArgument, lambda: volumes.volume("data"))
        _expect(InvalidArgument, lambda: volumes.reserve("data", _instance()))
        _expect(InvalidArgument, lambda: volumes.reserve(volume_id, "web-1"))
        _expect(InvalidArgument, lambda: volumes.reserve(volume_id, _instance(), mode="w"))  # type: ignore[arg-type]
        _expect(InvalidArgument, lambda: volumes.delete("../volumes"))
        assert volumes.volume(volume_id).status == "available"
        assert volumes.attachments(volume_id=volume_id) == ()

    def test_attach_and_detach(self, volumes: VolumeService, new_volume: Callable[..., str]) -> None:
        """Reserve, map, complete, delete: the statuses of volume and attachment after each."""
        volume_id, instance_id = new_volume(), _instance()
        made = volumes.reserve(volume_id, instance_id)
        assert (made.volume_id, made.instance_id, made.status) == (volume_id, instance_id, AttachmentStatus.RESERVED)
        assert made.connection is None
        assert volumes.volume(volume_id).status == "reserved"
        mapped = volumes.update(made.id, _connector())
        assert mapped.status is AttachmentStatus.ATTACHING
        assert mapped.connection is not None
        assert volumes.volume(volume_id).status == "attaching"
        volumes.complete(made.id)
        assert volumes.volume(volume_id).status == "in-use"
        shown = volumes.attachment(made.id)
        assert (shown.id, shown.status) == (made.id, AttachmentStatus.ATTACHED)
        assert shown.connection is not None
        assert shown.connection.kind == mapped.connection.kind
        volumes.delete(made.id)
        assert volumes.volume(volume_id).status == "available"
        _expect(AttachmentNotFound, lambda: volumes.attachment(made.id))

    def test_no_migration_can_be_completed(self, volumes: VolumeService, new_volume: Callable[..., str]) -> None:
        """That the service has not begun; nothing is done to either volume."""
        volume_id, other = new_volume(), new_volume()
        made = volumes.create(volume_id, _instance(), _connector())
        for error in (False, True):
            refuse = functools.partial(volumes.complete_migration, volume_id, other, error=error)
            _expect(Conflict, refuse)
        assert (volumes.volume(volume_id).status, volumes.volume(other).status) == ("attaching", "available")
        assert [record.id for record in volumes.attachments(volume_id=volume_id)] == [made.id]
        _expect(VolumeNotFound, lambda: volumes.complete_migration(_instance(), other))
        volumes.delete(made.id)

    def test_a_reservation_can_be_given_back(self, volumes: VolumeService, new_volume: Callable[..., str]) -> None:
        """Without ever having been mapped."""
        volume_id = new_volume()
        volumes.delete(volumes.reserve(volume_id, _instance()).id)
        assert volumes.volume(volume_id).status == "available"

    def test_what_is_safe_to_repeat(self, volumes: VolumeService, new_volume: Callable[..., str]) -> None:
        """Update, complete and delete, ten times each, are as once."""
        volume_id = new_volume()
        made = volumes.reserve(volume_id, _instance())
        connections = [volumes.update(made.id, _connector()).connection for _ in range(10)]
        assert all(connection is not None and connection.kind for connection in connections)
        for _ in range(10):
            volumes.complete(made.id)
        assert volumes.volume(volume_id).status == "in-use"
        for _ in range(10):
            volumes.delete(made.id)
        assert volumes.volume(volume_id).status == "available"

    def test_a_bare_reservation_can_be_completed(self, volumes: VolumeService, new_volume: Callable[..., str]) -> None:
        """A shelved instance holds its volume that way; it can be mapped later."""
        volume_id = new_volume()
        made = volumes.reserve(volume_id, _instance())
        volumes.complete(made.id)
        assert volumes.volume(volume_id).status == "in-use"
        assert volumes.attachment(made.id).connection is None
        assert volumes.update(made.id, _connector()).connection is not None
        volumes.delete(made.id)
        assert volumes.volume(volume_id).status == "available"

    def test_a_volume_in_flight_is_busy(self, volumes: VolumeService, new_volume: Callable[..., str]) -> None:
        """For any other instance, multi-attach or not, while reserved and while attaching; nothing changes."""
        for multiattach in (False, True):
            volume_id = new_volume(multiattach=multiattach)
            made = volumes.reserve(volume_id, _instance())
            _expect(VolumeBusy, lambda v=volume_id: volumes.reserve(v, _instance()))  # type: ignore[misc]
            volumes.update(made.id, _connector())
            _expect(VolumeBusy, lambda v=volume_id: volumes.reserve(v, _instance()))  # type: ignore[misc]
            assert [record.id for record in volumes.attachments(volume_id=volume_id)] == [made.id]
            volumes.delete(made.id)

    def test_an_exclusive_volume_has_one_user(self, volumes: VolumeService, new_volume: Callable[..., str]) -> None:
        """Another instance gets a conflict, not a request to wait."""
        volume_id = new_volume()
        made = volumes.create(volume_id, _instance(), _connector())
        volumes.complete(made.id)
        _expect(Conflict, lambda: volumes.reserve(volume_id, _instance()))
        _expect(Conflict, lambda: volumes.create(volume_id, _instance(), _connector("compute-2")))
        assert [record.id for record in volumes.attachments(volume_id=volume_id)] == [made.id]
        volumes.delete(made.id)

    def test_a_shared_volume_has_several(self, volumes: VolumeService, new_volume: Callable[..., str]) -> None:
        """One leaves, the others stay."""
        volume_id, instances = new_volume(multiattach=True), [_instance() for _ in range(3)]
        made = []
        for instance_id in instances:
            record = volumes.reserve(volume_id, instance_id)
            volumes.update(record.id, _connector())
            volumes.complete(record.id)
            made.append(record.id)
        assert {record.id for record in volumes.attachments(volume_id=volume_id)} == set(made)
        volumes.delete(made[1])
        assert volumes.volume(volume_id).status == "in-use"
        assert {record.instance_id for record in volumes.attachments(volume_id=volume_id)} == {
            instances[0],
            instances[2],
        }
        volumes.delete(made[0])
        volumes.delete(made[2])
        assert volumes.volume(volume_id).status == "available"

    def test_the_same_instance_may_reserve_again(self, volumes: VolumeService, new_volume: Callable[..., str]) -> None:
        """For moves: an exclusive volume in use, mapped to a second host by create, then let go by the first."""
        volume_id, instance_id = new_volume(), _instance()
        first = volumes.create(volume_id, instance_id, _connector())
        volumes.complete(first.id)
        second = volumes.create(volume_id, instance_id, _connector("compute-2"))
        assert second.connection is not None
        volumes.complete(second.id)
        volumes.delete(first.id)
        assert volumes.volume(volume_id).status == "in-use"
        assert [record.id for record in volumes.attachments(instance_id=instance_id)] == [second.id]
        volumes.delete(second.id)
        assert volumes.volume(volume_id).status == "available"

    def test_a_second_mapping_by_update_is_refused(
        self, volumes: VolumeService, new_volume: Callable[..., str]
    ) -> None:
        """An exclusive volume: reserve for the same instance works, mapping it while the first is mapped does not."""
        volume_id, instance_id = new_volume(), _instance()
        first = volumes.create(volume_id, instance_id, _connector())
        volumes.complete(first.id)
        second = volumes.reserve(volume_id, instance_id)
        _expect(Conflict, lambda: volumes.update(second.id, _connector("compute-2")))
        volumes.delete(first.id)
        assert volumes.update(second.id, _connector("compute-2")).connection is not None
        volumes.delete(second.id)
        assert volumes.volume(volume_id).status == "available"

    def test_attachments_are_listed_by_volume_and_instance(
        self, volumes: VolumeService, new_volume: Callable[..., str]
    ) -> None:
        """Reservations included, connections left out."""
        one, two, instance_id = new_volume(), new_volume(), _instance()
        first, second = volumes.reserve(one, instance_id), volumes.create(two, instance_id, _connector())
        assert {record.id for record in volumes.attachments(instance_id=instance_id)} == {first.id, second.id}
        assert [r.id for r in volumes.attachments(instance_id=instance_id, volume_id=one)] == [first.id]
        assert all(record.connection is None for record in volumes.attachments(instance_id=instance_id))
        assert volumes.attachments(volume_id=one, instance_id=_instance()) == ()
        volumes.delete(first.id)
        volumes.delete(second.id)

    def test_the_mode_is_kept(self, volumes: VolumeService, new_volume: Callable[..., str]) -> None:
        """By reservations and by create, where the service keeps modes at all."""
        volume_id = new_volume(multiattach=True)
        first = volumes.reserve(volume_id, _instance(), mode="ro")
        volumes.update(first.id, _connector())
        volumes.complete(first.id)
        second = volumes.create(volume_id, _instance(), _connector(), mode="ro")
        volumes.complete(second.id)
        expected = "ro" if volumes.features().mode else None
        assert [volumes.attachment(made.id).mode for made in (first, second)] == [expected, expected]
        volumes.delete(first.id)
        volumes.delete(second.id)

    def test_a_connector_is_no_dictionary(self, volumes: VolumeService, new_volume: Callable[..., str]) -> None:
        """A connector is checked when it is made; anything else is refused before anything changes."""
        volume_id = new_volume()
        _expect(InvalidArgument, lambda: volumes.create(volume_id, _instance(), {"ip": "1.2.3.4"}))  # type: ignore[arg-type]
        made = volumes.reserve(volume_id, _instance())
        _expect(InvalidArgument, lambda: volumes.update(made.id, {}))  # type: ignore[arg-type]
        assert volumes.attachment(made.id).status is AttachmentStatus.RESERVED
        volumes.delete(made.id)

    def test_only_one_of_many_at_once_reserves(self, volumes: VolumeService, new_volume: Callable[..., str]) -> None:
        """Ten instances ask for one volume at the same time: one has it, the others are told to wait."""
        volume_id, start = new_volume(multiattach=True), threading.Barrier(10)

        def ask(_: int) -> str | None:
            start.wait()
            try:
                return volumes.reserve(volume_id, _instance()).id
            except VolumeBusy:
                return None

        with ThreadPoolExecutor(10) as pool:
            made = [found for found in pool.map(ask, range(10)) if found]
        assert [record.id for record in volumes.attachments(volume_id=volume_id)] == made
        assert len(made) == 1
        volumes.delete(made[0])

    def test_growing(self, volumes: VolumeService, new_volume: Callable[..., str]) -> None:
        """Available and in use; the same size again is success, less is refused."""
        volume_id = new_volume()
        assert volumes.extend(volume_id, 2 * GIB).size == 2 * GIB
        made = volumes.create(volume_id, _instance(), _connector())
        volumes.complete(made.id)
        assert volumes.extend(volume_id, 3 * GIB).size == 3 * GIB
        assert volumes.extend(volume_id, 3 * GIB).size == 3 * GIB
        _expect(InvalidArgument, lambda: volumes.extend(volume_id, 2 * GIB))
        assert volumes.volume(volume_id).size == 3 * GIB
        assert volumes.volume(volume_id).status == "in-use"
        _expect(VolumeNotFound, lambda: volumes.extend(_instance(), GIB))
        volumes.delete(made.id)

    def test_a_volume_in_use_is_not_deleted(self, volumes: VolumeService, new_volume: Callable[..., str]) -> None:
        """Detach first; then it goes, and stays gone."""
        volume_id = new_volume()
        made = volumes.create(volume_id, _instance(), _connector())
        volumes.complete(made.id)
        _expect(InUse, lambda: volumes.delete_volume(volume_id))
        assert volumes.attachment(made.id).status is AttachmentStatus.ATTACHED
        volumes.delete(made.id)
        volumes.delete_volume(volume_id)
        volumes.delete_volume(volume_id)

    def test_a_connection_shows_no_secrets(self, volumes: VolumeService, new_volume: Callable[..., str]) -> None:
        """Whatever the driver says, what is not known to be harmless is masked."""
        volume_id = new_volume()
        made = volumes.create(volume_id, _instance(), _connector())
        assert made.connection is not None
        for name, value in made.connection.data.items():
            if any(word in name for word in ("password", "keyring", "token")) and value:
                assert str(value) not in repr(made)
        volumes.delete(made.id)

    def test_closing_twice(self, volumes: VolumeService) -> None:
        """As every owner of connections."""
        volumes.close()
        volumes.close()


class FakeVolumes:
    """Any volume service, with faults: fail before the work, or after it has been done.

    >>> faulty = FakeVolumes(service)                                                     # doctest: +SKIP
    >>> faulty.fail("reserve", OutcomeUnknown("the answer was lost"), after=True)         # doctest: +SKIP

    Everything else is passed on. May be shared between threads.
    """

    def __init__(self, service: VolumeService) -> None:
        self._service = service
        self._mutex = threading.Lock()
        self._faults: dict[str, list[tuple[Exception, bool]]] = defaultdict(list)
        self._hooks: dict[str, Callable[..., object]] = {}
        self.calls: list[str] = []

    def fail(self, method: str, error: Exception, *, after: bool = False, times: int = 1) -> None:
        """Let the next *times* calls of *method* raise *error*; with *after*, once the work is done."""
        with self._mutex:
            self._faults[method].extend([(error, after)] * times)

    def on(self, method: str, hook: Callable[..., object]) -> None:
        """Call *hook* with the arguments before each call of *method*: to wait, to meddle, to raise."""
        self._hooks[method] = hook

    def heal(self) -> None:
        """Forget every fault and hook."""
        with self._mutex:
            self._faults.clear()
            self._hooks.clear()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # Python's own questions are of this object, and a copy is asked before it is filled
            raise AttributeError(name)
        target = getattr(self._service, name)
        if not callable(target) or name.startswith("_"):
            return target

        def call(*args: Any, **kwargs: Any) -> Any:
            with self._mutex:
                self.calls.append(name)
                fault = self._faults[name].pop(0) if self._faults.get(name) else None
            hook = self._hooks.get(name)
            if hook is not None:
                hook(*args, **kwargs)
            if fault is not None and not fault[1]:
                raise fault[0]
            answer = target(*args, **kwargs)
            if fault is not None:
                raise fault[0]
            return answer

        return call
