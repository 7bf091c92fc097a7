"""AttachmentManager and a real Cinder: through lost answers, and past the death of either side.

What works the same on every volume service is in test_scenarios.
"""

import multiprocessing
import os
import signal
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from cloudcore import _failpoints, errors
from cloudcore.attach.audit.findings import Kind
from cloudcore.attach.hosts.guests import MemoryGuests
from cloudcore.attach.lifecycle.states import State
from cloudcore.attach.volumes.cinder import CinderVolumes
from cloudcore.schema import create_schema
from tests import services
from tests.attach.cinder_child import open_manager, run
from tests.attach.cinder_pool import pool
from tests.faults import Proxy


def instance():
    return str(uuid.uuid4())


class Cloud:
    """A real Cinder, and what is needed to look at it."""

    def __init__(self, server):
        self.server = server
        self.volumes = CinderVolumes.noauth(server.endpoint, project_id=services.PROJECT)
        self.lent = []

    def create_volume(self, **options):
        self.lent.append(pool(self.server).take(**options))
        return self.lent[-1]

    def statuses(self, volume):
        """Of the volume and of its attachments."""
        rows = self.volumes.attachments(volume_id=volume)
        return self.volumes.volume(volume).status, sorted(row.status.value for row in rows)

    def clear(self):
        for volume in self.lent:
            pool(self.server).give_back(volume)
        self.volumes.close()


@pytest.fixture
def cloud():
    """The run's Cinder with a driver of files."""
    cloud = Cloud(services.cinder())
    yield cloud
    cloud.clear()


@pytest.fixture
def guests():
    return MemoryGuests("host-0")


# --------------------------------------------------------------------------------------------------------- lost answers


@pytest.mark.parametrize("arm", ["cut_when", "cut_after"])
@pytest.mark.parametrize("needle", [b'"volume_uuid"', b"PUT ", b"os-complete"])
def test_an_attach_goes_on_after_a_lost_answer(cloud, new_manager, guests, arm, needle):
    """Whichever request or answer is lost: attached, with one record and no orphan."""
    volume = cloud.create_volume(multiattach=True)
    with Proxy(cloud.server.port) as proxy:
        far = CinderVolumes.noauth(cloud.server.url(proxy.port), project_id=services.PROJECT)
        manager = new_manager(far, guests)
        far.features()
        getattr(proxy, arm)(needle)
        leg = manager.attach(volume, instance())
        proxy.wait_cut()
        assert cloud.statuses(volume) == ("in-use", ["attached"])
        assert manager.audit().clean
        getattr(proxy, arm)(b"DELETE ")
        manager.detach(leg.id)
        proxy.wait_cut()
    assert cloud.statuses(volume) == ("available", [])


def eventually(look, wanted):
    """What comes without an event to wait for."""
    deadline = time.monotonic() + 60
    while (found := look()) != wanted:
        assert time.monotonic() < deadline, f"still {found}, not {wanted}"
        time.sleep(0.05)


def test_a_reservation_that_arrives_after_recovery_is_found_by_audit(cloud, new_manager, guests):
    """The request hangs in the network; recovery looks and finds nothing; then the request arrives."""
    volume, owner = cloud.create_volume(), instance()
    with Proxy(cloud.server.port) as proxy:
        far = CinderVolumes.noauth(cloud.server.url(proxy.port), project_id=services.PROJECT, timeout=1.0, attempts=1)
        far.features()
        _failpoints.arm("attach.reserve.before", lambda _: proxy.hang())
        try:
            with pytest.raises(errors.OutcomeUnknown):
                new_manager(far, guests).attach(volume, owner)
        finally:
            _failpoints.disarm()
        near = new_manager(cloud.volumes, guests)
        assert near.recover().complete
        assert (near.attachments(), cloud.statuses(volume)) == ((), ("available", []))
        proxy.heal()
        eventually(lambda: cloud.statuses(volume), ("reserved", ["reserved"]))
    report = near.audit(volume)
    assert [finding.kind for finding in report.findings] == [Kind.UNKNOWN_RECORD]
    near.heal(report, apply=True)
    assert cloud.statuses(volume) == ("available", [])


# ---------------------------------------------------------------------------------------------------- Cinder that fails


@pytest.fixture
def failing():
    """A Cinder to break; the server of test_cinder_faults, hence in its group."""
    cloud = Cloud(services.cinder(variant="attach-faults", rpc_response_timeout=3))
    yield cloud
    cloud.server.start()
    cloud.server.start_volume_service()
    cloud.server.heal()
    cloud.clear()


@pytest.fixture
def impatient(new_manager, failing, guests):
    """A manager whose Cinder client does not repeat by itself."""
    once = CinderVolumes.noauth(failing.server.endpoint, project_id=services.PROJECT, attempts=1)
    once.features()
    return new_manager(once, guests)


@pytest.mark.xdist_group("cinder-faults")
def test_cinder_killed_in_the_middle_of_an_attach(failing, impatient):
    """Nobody can be asked: uncertain. When Cinder is back, recover finds the orphan and removes it."""
    volume = failing.create_volume()
    failing.server.fault("initialize_connection", delay=None)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(impatient.attach, volume, instance())
        failing.server.wait_fault("initialize_connection")
        failing.server.kill()
        assert isinstance(call.exception(), errors.OutcomeUnknown)
    assert [leg.state.uncertain for leg in impatient.attachments()] == [True]
    failing.server.start()
    assert failing.statuses(volume)[1] == ["reserved"]
    assert impatient.recover().complete
    assert failing.statuses(volume) == ("available", [])
    assert impatient.audit().clean
    assert impatient.attach(volume, instance()).state is State.ATTACHED


@pytest.mark.xdist_group("cinder-faults")
def test_an_attach_without_a_volume_service_is_undone(failing, impatient):
    """Reservations work, mapping does not; the reservation is given back."""
    volume = failing.create_volume()
    failing.server.stop_volume_service()
    with pytest.raises(errors.CloudcoreError):
        impatient.attach(volume, instance())
    failing.server.start_volume_service()
    impatient.recover()
    assert failing.statuses(volume) == ("available", [])
    assert impatient.audit().clean


@pytest.mark.xdist_group("cinder-faults")
def test_a_backend_that_fails_for_good_leaves_no_reservation(failing, impatient):
    volume = failing.create_volume()
    failing.server.fault("initialize_connection", error="no", times=None)
    with pytest.raises(errors.CloudcoreError):
        impatient.attach(volume, instance())
    assert failing.statuses(volume) == ("available", [])
    assert impatient.attachments() == ()


@pytest.mark.xdist_group("cinder-faults")
def test_a_detach_is_finished_when_the_backend_works_again(failing, impatient, guests):
    volume = failing.create_volume()
    leg = impatient.attach(volume, instance())
    failing.server.fault("terminate_connection", error="no", times=None)
    with pytest.raises(errors.CloudcoreError):
        impatient.detach(leg.id)
    assert guests.disk_states() == ()
    assert failing.statuses(volume)[1] == ["attached"]
    failing.server.heal()
    assert impatient.recover().complete
    assert failing.statuses(volume) == ("available", [])


@pytest.mark.xdist_group("cinder-faults")
def test_a_mapping_that_ends_after_the_attach_is_found_by_audit(failing, impatient):
    """Cinder gives up on a slow backend, the repeat succeeds; then the first request ends and undoes "attached".

    The volume would refuse every other instance until it is completed again.
    """
    volume = failing.create_volume(multiattach=True)
    failing.server.fault("initialize_connection", delay=None)
    impatient.attach(volume, instance())
    assert failing.statuses(volume) == ("in-use", ["attached"])
    failing.server.heal()
    eventually(lambda: failing.statuses(volume), ("attaching", ["attaching"]))
    report = impatient.audit()
    assert [finding.kind for finding in report.findings] == [Kind.INCOMPLETE]
    impatient.heal(report, apply=True)
    assert failing.statuses(volume) == ("in-use", ["attached"])
    assert impatient.audit().clean


# ----------------------------------------------------------------------------------------------- our own death, kill -9


@pytest.fixture(scope="module")
def children():
    """Starts processes that have imported everything before they are forked."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.attach.cinder_child", "cinderclient.v3.client", "keystoneauth1.session"])
    return context


class Life:
    """One volume, one instance, one journal: kill at a point, then recover."""

    def __init__(self, cloud, tmp_path, children):
        self.cloud, self._children = cloud, children
        self._place = (f"sqlite:///{tmp_path / 'journal.db'}", cloud.server.endpoint, str(tmp_path / "guests"))
        self.manager = open_manager(*self._place, patience=30.0)
        create_schema(self.manager._database, areas=["attach"])
        self.volume, self.instance = cloud.create_volume(multiattach=True), instance()

    def started(self, point, action, *arguments, **options):
        """A process that does it."""
        child = self._children.Process(target=run, args=(point, action, arguments, options, self._place))
        child.start()
        return child

    def killed(self, point, action, *arguments, **options):
        """Whether the process died at the point (False: it finished before)."""
        child = self.started(point, action, *arguments, **options)
        child.join(120)
        assert child.exitcode in (-signal.SIGKILL, 0)
        return child.exitcode != 0

    def settle(self):
        """Recover twice; then everybody agrees."""
        assert self.manager.recover().complete
        assert self.manager.recover().settled == ()
        legs = self.manager.attachments()
        assert {leg.state for leg in legs} <= {State.ATTACHED, State.HELD}
        status, records = self.cloud.statuses(self.volume)
        assert records == ["attached"] * len(legs)
        assert status == ("in-use" if legs else "available")
        assert self.manager.audit().clean
        self.manager.check()
        return legs


ATTACH = [
    "attach.begin.after", "attach.reserve.before", "attach.reserve.after", "attach.map.before", "attach.map.after",
    "attach.connect.after", "attach.plug.before", "attach.plug.after", "attach.complete.before",
    "attach.complete.after",
]  # fmt: skip
DETACH = [
    "attach.unplug.before", "attach.unplug.after", "attach.disconnect.before", "attach.unmap.before",
    "attach.unmap.after",
]  # fmt: skip


@pytest.fixture
def life(tmp_path, children, cloud):
    life = Life(cloud, tmp_path, children)
    yield life
    life.manager.close()


@pytest.mark.parametrize("points", [ATTACH[:5], ATTACH[5:]], ids=["early", "late"])
def test_killed_while_attaching(life, points):
    """At each point: attached or cleanly absent, and nothing left over in Cinder."""
    for point in points:
        assert life.killed(point, "attach", life.volume, life.instance, host="a"), point
        for leg in life.settle():
            life.manager.detach(leg.id)


def test_killed_while_detaching(life):
    for point in DETACH:
        leg = life.manager.attach(life.volume, life.instance, host="a")
        assert life.killed(point, "detach", leg.id), point
        assert life.settle() == ()


def test_killed_while_recovering(life):
    """Recovery dies too, at each of its steps in turn, until one gets through."""
    points = ["attach.recover.begin", "attach.recover.lost", "attach.look.before", "attach.unmap.after"]
    for point in points:
        assert life.killed("attach.map.after", "attach", life.volume, life.instance, host="a")
        life.killed(point, "recover")
        for leg in life.settle():
            life.manager.detach(leg.id)


def test_killed_while_moving_live(life):
    """Before the guest has gone: back at the source. After: at the destination."""
    life.manager.attach(life.volume, life.instance, host="a")
    for point in ("attach.create.before", "attach.create.after", "attach.complete.after"):
        assert life.killed(point, "begin_move", life.instance, "b"), point
        assert [leg.host for leg in life.settle()] == ["a"]
    for point in ("attach.unmap.before", "attach.unmap.after"):
        source, destination = ("a", "b") if point.endswith("before") else ("b", "a")
        move = life.manager.begin_move(life.instance, destination)
        life.manager.hosts[destination].guests.attach_disk(life.instance, move.disks[0])
        life.manager.hosts[source].guests.detach_disk(life.instance, life.volume)
        assert life.killed(point, "confirm_move", life.instance), point
        assert [leg.host for leg in life.settle()] == [destination]


def test_killed_while_shelving(life):
    """The volume stays with the instance, on its host or on none."""
    life.manager.attach(life.volume, life.instance, host="a")
    for point in ("attach.reserve.after", "attach.unplug.after", "attach.unmap.after"):
        assert life.killed(point, "begin_move", life.instance, None, kind="shelve"), point
        (leg,) = life.settle()
        assert leg.instance_id == life.instance
        if life.manager.move(life.instance) is not None:
            life.manager.revert_move(life.instance)
        assert [leg.host for leg in life.settle()] == ["a"]


@pytest.mark.xdist_group("cinder-faults")
@pytest.mark.parametrize("method", ["initialize_connection", "terminate_connection"])
def test_killed_while_cinder_is_at_work(tmp_path, children, failing, method):
    """No failpoint: the request is on its way when we die, and ends after recovery has looked."""
    life = Life(failing, tmp_path, children)
    if method == "initialize_connection":
        action, arguments, options = "attach", (life.volume, life.instance), {"host": "a"}
    else:
        action, arguments, options = "detach", (life.manager.attach(life.volume, life.instance, host="a").id,), {}
    failing.server.fault(method, delay=None)
    child = life.started("", action, *arguments, **options)
    failing.server.wait_fault(method)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert life.settle() == ()
    failing.server.heal()
    assert life.settle() == ()
    life.manager.close()
