"""CinderVolumes while a real Cinder fails: its backend, its processes, and the way there.

What must hold: an error other than OutcomeUnknown means that nothing happened; after OutcomeUnknown what happened can
be found out and undone; nothing is done twice.
"""

import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from cloudcore import errors
from cloudcore.attach.volumes.cinder import CinderVolumes
from cloudcore.attach.volumes.values import AttachmentStatus, Connector
from tests import services
from tests.attach.cinder_pool import pool
from tests.faults import Proxy
from tests.waiting import until

pytestmark = pytest.mark.xdist_group("cinder-faults")

HOST = Connector(host="compute-1", ip="127.0.0.1")
GIB = 2**30


@pytest.fixture(scope="module")
def cinder():
    """A Cinder to break, which gives up waiting for its volume service after three seconds."""
    return services.cinder(variant="attach-faults", rpc_response_timeout=3)


@pytest.fixture
def volumes(cinder):
    """An undisturbed way to look."""
    with CinderVolumes.noauth(cinder.endpoint, project_id=services.PROJECT) as volumes:
        yield volumes


@pytest.fixture
def impatient(cinder):
    """Repeats at once, twice at most."""
    with CinderVolumes.noauth(
        cinder.endpoint, project_id=services.PROJECT, attempts=2, sleep=lambda _: None
    ) as volumes:
        yield volumes


@pytest.fixture
def volume(cinder):
    """A volume. At the end faults are taken back; then it must be possible to release it."""
    volume = pool(cinder).take()
    yield volume
    cinder.start()
    cinder.start_volume_service()
    cinder.heal()
    pool(cinder).give_back(volume)


@pytest.fixture
def owner():
    return str(uuid.uuid4())


def statuses(volumes, volume):
    return [row.status.value for row in volumes.attachments(volume_id=volume)]


def mappings(cinder, volume):
    """How often the backend was asked to let a host in, since this was asked last."""
    return sum(call == ("initialize_connection", volume) for call in map(tuple, cinder.driver_calls()))


# --------------------------------------------------------------------------------------------------------- the backend


@pytest.mark.parametrize("method", ["initialize_connection", "create_export"])
def test_update_is_repeated_when_the_backend_fails_once(cinder, impatient, volume, owner, method):
    made = impatient.reserve(volume, owner)
    cinder.fault(method, error="not now")
    assert impatient.update(made.id, HOST).status is AttachmentStatus.ATTACHING


def test_a_backend_that_goes_on_failing_leaves_the_reservation(cinder, impatient, volumes, volume, owner):
    made = impatient.reserve(volume, owner)
    cinder.fault("initialize_connection", error="chap-password hush", times=None)
    with pytest.raises(errors.OutcomeUnknown) as caught:
        impatient.update(made.id, HOST)
    assert "hush" not in "".join(map(str, (caught.value, caught.value.__cause__, caught.value.__context__)))
    assert volumes.attachment(made.id).status is AttachmentStatus.RESERVED
    cinder.heal()
    assert impatient.update(made.id, HOST).connection is not None


def test_a_failed_create_leaves_a_record_that_a_listing_finds(cinder, impatient, volumes, volume, owner):
    """Cinder answers 500, names no id, and keeps the reservation."""
    cinder.fault("initialize_connection", error="no", times=None)
    with pytest.raises(errors.OutcomeUnknown):
        impatient.create(volume, owner, HOST)
    (orphan,) = volumes.attachments(volume_id=volume, instance_id=owner)
    assert orphan.status is AttachmentStatus.RESERVED
    impatient.delete(orphan.id)
    assert volumes.volume(volume).status == "available"


def test_create_is_sent_once_although_it_failed(cinder, impatient, volumes, volume, owner):
    """Twice would make two records."""
    cinder.fault("initialize_connection", error="no", times=1)
    with pytest.raises(errors.OutcomeUnknown):
        impatient.create(volume, owner, HOST)
    assert len(volumes.attachments(volume_id=volume)) == 1


def test_update_is_repeated_when_the_backend_is_slower_than_cinder_waits(cinder, impatient, volume, owner):
    """500 after the time limit, while the backend is still at it."""
    made = impatient.reserve(volume, owner)
    cinder.fault("initialize_connection", delay=None)
    assert impatient.update(made.id, HOST).connection is not None
    cinder.heal()


def test_a_slow_create_is_found_and_finished(cinder, impatient, volumes, volume, owner):
    """The row turns up as attaching when the backend has finished, still without a connection: update gives it one."""
    cinder.fault("initialize_connection", delay=None)
    with pytest.raises(errors.OutcomeUnknown):
        impatient.create(volume, owner, HOST)
    (orphan,) = volumes.attachments(volume_id=volume, instance_id=owner)
    cinder.heal()
    assert impatient.update(orphan.id, HOST).connection is not None
    impatient.complete(orphan.id)


@pytest.mark.parametrize("when", ["before", "after"])
def test_delete_is_repeated_when_the_backend_fails(cinder, impatient, volumes, volume, owner, when):
    """Also when it has let go already."""
    made = impatient.create(volume, owner, HOST)
    impatient.complete(made.id)
    cinder.fault("terminate_connection", error="not now", when=when)
    impatient.delete(made.id)
    assert statuses(volumes, volume) == []


def test_a_delete_that_goes_on_failing_is_not_reported_as_done(cinder, impatient, volumes, volume, owner):
    made = impatient.create(volume, owner, HOST)
    cinder.fault("terminate_connection", error="no", times=None)
    with pytest.raises(errors.OutcomeUnknown):
        impatient.delete(made.id)
    assert statuses(volumes, volume) == ["attaching"]


def test_delete_is_repeated_when_the_backend_is_slow(cinder, impatient, volumes, volume, owner):
    """Cinder keeps the row although the backend has let go."""
    made = impatient.create(volume, owner, HOST)
    impatient.complete(made.id)
    cinder.fault("terminate_connection", delay=None)
    impatient.delete(made.id)
    cinder.heal()
    assert statuses(volumes, volume) == []


def test_a_volume_that_cannot_grow_says_so(cinder, impatient, volume):
    cinder.fault("extend_volume", error="no space")
    with pytest.raises(errors.Conflict, match="error_extending"):
        impatient.extend(volume, 2 * GIB)
    cinder.client().volumes.reset_state(volume, "available")


# ------------------------------------------------------------------------------------------------- Cinder's processes


def test_without_a_volume_service_only_reservations_work(cinder, impatient, volumes, volume, owner):
    """The API lives on: it answers 500 when it has waited in vain. When the service is back the same call works."""
    cinder.stop_volume_service()
    made = impatient.reserve(volume, owner)
    patient_once = CinderVolumes.noauth(cinder.endpoint, project_id=services.PROJECT, attempts=1)
    with pytest.raises(errors.OutcomeUnknown, match="500"):
        patient_once.update(made.id, HOST)
    assert statuses(volumes, volume) == ["reserved"]
    cinder.start_volume_service()
    assert impatient.update(made.id, HOST).connection is not None
    impatient.complete(made.id)
    assert statuses(volumes, volume) == ["attached"]


def test_cinder_killed_in_the_middle_of_create_leaves_an_orphan_that_can_be_removed(
    cinder, impatient, volumes, volume, owner
):
    """kill -9 while the backend works: no answer ever comes, the reservation survives; so does what was attached."""
    other = pool(cinder).take()
    attached = volumes.create(other, owner, HOST)
    volumes.complete(attached.id)
    cinder.fault("initialize_connection", delay=None)
    impatient.features()
    with ThreadPoolExecutor(1) as executor:
        call = executor.submit(impatient.create, volume, owner, HOST)
        cinder.wait_fault("initialize_connection")
        cinder.kill()
        error = call.exception()
    assert isinstance(error, errors.OutcomeUnknown)
    with pytest.raises(errors.VolumeServiceUnavailable, match="no connection"):
        impatient.reserve(volume, owner)
    cinder.start()
    (orphan,) = volumes.attachments(volume_id=volume, instance_id=owner)
    assert orphan.status is AttachmentStatus.RESERVED
    with pytest.raises(errors.VolumeBusy):
        volumes.reserve(volume, str(uuid.uuid4()))
    volumes.delete(orphan.id)
    assert volumes.attachment(attached.id).status is AttachmentStatus.ATTACHED
    pool(cinder).give_back(other)


# ------------------------------------------------------------------------------------------------------ the way there


@pytest.fixture
def proxy(cinder):
    with Proxy(cinder.port) as proxy:
        yield proxy


@pytest.fixture
def far(cinder, proxy):
    """Through the proxy; the version is negotiated before anything breaks."""
    with CinderVolumes.noauth(
        cinder.url(proxy.port), project_id=services.PROJECT, attempts=3, sleep=lambda _: None
    ) as volumes:
        volumes.features()
        yield volumes


def test_a_reservation_whose_answer_was_lost_is_unknown_and_can_be_found(far, proxy, volumes, volume, owner):
    proxy.cut_after(b"POST ")
    with pytest.raises(errors.OutcomeUnknown):
        far.reserve(volume, owner)
    proxy.wait_cut()
    (orphan,) = far.attachments(volume_id=volume, instance_id=owner)
    far.delete(orphan.id)
    assert volumes.volume(volume).status == "available"


def test_a_reservation_that_never_arrived_is_unknown_and_absent(far, proxy, volumes, volume, owner):
    """From here the two cannot be told apart; the listing tells."""
    proxy.cut_when(b"POST ")
    with pytest.raises(errors.OutcomeUnknown):
        far.reserve(volume, owner)
    assert far.attachments(volume_id=volume) == ()


def test_a_create_whose_answer_was_lost_is_found_with_its_connection(far, proxy, volume, owner):
    proxy.cut_after(b"POST ")
    with pytest.raises(errors.OutcomeUnknown):
        far.create(volume, owner, HOST)
    (found,) = far.attachments(volume_id=volume, instance_id=owner)
    assert far.attachment(found.id).connection is not None


def test_an_update_whose_answer_was_lost_is_adopted(far, proxy, cinder, volume, owner):
    """The backend is asked once."""
    made = far.reserve(volume, owner)
    mappings(cinder, volume)
    proxy.cut_after(b"PUT ")
    assert far.update(made.id, HOST).status is AttachmentStatus.ATTACHING
    assert proxy.cuts == 1
    assert mappings(cinder, volume) == 1


def test_an_update_that_never_arrived_is_repeated(far, proxy, cinder, volume, owner):
    made = far.reserve(volume, owner)
    mappings(cinder, volume)
    proxy.cut_when(b"PUT ")
    assert far.update(made.id, HOST).connection is not None
    assert mappings(cinder, volume) == 1


@pytest.mark.parametrize("arm", ["cut_when", "cut_after"])
@pytest.mark.parametrize("verb", ["GET", "complete", "delete"])
def test_what_may_be_repeated_is_repeated(far, proxy, volumes, volume, owner, arm, verb):
    """Whether the request or only the answer was lost."""
    made = far.create(volume, owner, HOST)
    getattr(proxy, arm)({"GET": b"GET ", "complete": b"POST ", "delete": b"DELETE "}[verb])
    if verb == "GET":
        assert far.attachment(made.id).id == made.id
    else:
        getattr(far, verb)(made.id)
    assert proxy.cuts == 1
    assert statuses(volumes, volume) == {"GET": ["attaching"], "complete": ["attached"], "delete": []}[verb]


def test_extend_whose_answer_was_lost_is_watched(far, proxy, volume):
    proxy.cut_after(b"os-extend")
    assert far.extend(volume, 2 * GIB).size == 2 * GIB


def test_deleting_the_volume_twice_because_the_answer_was_lost(far, proxy, cinder):
    doomed = cinder.create_volume()
    proxy.cut_after(b"DELETE ")
    far.delete_volume(doomed)
    assert proxy.cuts == 1
    with pytest.raises(errors.VolumeNotFound):
        until(lambda: far.volume(doomed).status != "deleting")


@pytest.mark.parametrize("call", ["update", "delete", "complete"])
def test_after_a_lost_answer_no_later_failure_proves_that_nothing_happened(cinder, proxy, volumes, volume, owner, call):
    """The answer is lost, then Cinder cannot be reached at all: unknown, not unavailable."""

    def pause(_):
        proxy.close()

    made = volumes.create(volume, owner, HOST) if call == "complete" else volumes.reserve(volume, owner)
    arguments = (made.id, HOST) if call == "update" else (made.id,)
    with CinderVolumes.noauth(cinder.url(proxy.port), project_id=services.PROJECT, attempts=3, sleep=pause) as far:
        far.features()
        proxy.cut_after({"update": b"PUT ", "delete": b"DELETE ", "complete": b"POST "}[call])
        with pytest.raises(errors.OutcomeUnknown):
            getattr(far, call)(*arguments)
    expected = {"update": ["attaching"], "delete": [], "complete": ["attached"]}[call]
    assert statuses(volumes, volume) == expected


def test_a_black_hole_ends_at_the_time_limit(cinder, proxy, volumes, volume, owner):
    """Nothing is answered and nothing is closed."""
    with CinderVolumes.noauth(
        cinder.url(proxy.port), project_id=services.PROJECT, timeout=0.3, attempts=2, sleep=lambda _: None
    ) as far:
        with CinderVolumes.noauth(cinder.url(proxy.port), project_id=services.PROJECT) as slow:
            slow.features()
            far._calls._spoken = (far._calls._http.client("3.71"), slow.features())
        proxy.hang()
        with pytest.raises(errors.OutcomeUnknown, match="in time"):
            far.reserve(volume, owner)
        with pytest.raises(errors.VolumeServiceUnavailable, match="in time"):
            far.volume(volume)
        proxy.cut()


def test_the_deadline_ends_repetition(cinder, proxy, volume):
    """By the clock that was given, whatever attempts are left."""
    now = [0.0]

    def pause(_):
        now[0] += 60.0

    with CinderVolumes.noauth(
        cinder.url(proxy.port), project_id=services.PROJECT, deadline=100.0, attempts=50, clock=lambda: now[0],
        sleep=pause,
    ) as far:  # fmt: skip
        far.features()
        proxy.refuse()
        proxy.cut()
        with pytest.raises(errors.VolumeServiceUnavailable):
            far.volume(volume)
    assert now[0] == 120.0


# --------------------------------------------------------------------------------------------------- behind our back


def test_an_attachment_deleted_behind_our_back_is_noticed(volumes, volume, owner):
    made = volumes.create(volume, owner, HOST)
    volumes.complete(made.id)
    volumes.delete(made.id)
    for call in (lambda: volumes.update(made.id, HOST), lambda: volumes.complete(made.id)):
        with pytest.raises(errors.AttachmentNotFound) as caught:
            call()
        assert caught.value.identifier == made.id
    volumes.delete(made.id)
