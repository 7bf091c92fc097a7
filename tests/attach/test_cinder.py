"""CinderVolumes on a real Cinder: what the contract suite cannot know of one implementation."""

import logging
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from cloudcore import errors
from cloudcore.attach.volumes.cinder import CinderVolumes
from cloudcore.attach.volumes.values import AttachmentStatus, Connector
from tests import services
from tests.attach.cinder_pool import pool
from tests.waiting import until

GIB = 2**30


@pytest.fixture(scope="session")
def cinder():
    """The run's Cinder with a driver of files."""
    return services.cinder()


@pytest.fixture
def open_volumes(cinder):
    """Opens CinderVolumes on the run's Cinder; all are closed at the end."""
    opened = []

    def make(**options):
        opened.append(CinderVolumes.noauth(cinder.endpoint, project_id=services.PROJECT, **options))
        return opened[-1]

    yield make
    for volumes in opened:
        volumes.close()


@pytest.fixture
def volumes(open_volumes):
    return open_volumes()


@pytest.fixture
def new_volume(cinder):
    """Lends volumes; they are released at the end."""
    lent = []

    def take(**options):
        lent.append(pool(cinder).take(**options))
        return lent[-1]

    yield take
    for volume in lent:
        pool(cinder).give_back(volume)


def instance():
    return str(uuid.uuid4())


def connector(host="compute-1", **more):
    return Connector(host=host, ip="127.0.0.1", initiator=f"iqn.2026-01.org.example:{host}", **more)


# --------------------------------------------------------------------------------------------------------- negotiation


def test_the_newest_version_is_spoken(volumes):
    assert volumes.features().microversion == "3.71"
    assert volumes.features().mode


def test_a_bound_is_kept(open_volumes, new_volume):
    """At 3.53 a service has no modes; the attach works all the same."""
    volumes = open_volumes(microversion="3.53")
    made = volumes.reserve(new_volume(), instance(), mode="ro")
    assert not volumes.features().mode
    assert made.mode is None


def test_a_version_without_attachments_is_refused_before_any_effect(open_volumes, new_volume, volumes):
    """Cinder itself would answer 404, as if the volume were unknown."""
    volume = new_volume()
    with pytest.raises(errors.UnsupportedFeature) as caught:
        open_volumes(microversion="3.26").reserve(volume, instance())
    assert caught.value.needed == "3.27"
    assert volumes.attachments(volume_id=volume) == ()


def test_without_the_complete_step_none_is_sent(open_volumes, new_volume, volumes):
    old = open_volumes(microversion="3.43")
    made = old.reserve(new_volume(), instance())
    old.complete(made.id)
    assert volumes.attachment(made.id).status is AttachmentStatus.RESERVED


def test_growing_in_use_needs_its_version(open_volumes, new_volume, volumes):
    volume = new_volume()
    made = volumes.create(volume, instance(), connector())
    volumes.complete(made.id)
    with pytest.raises(errors.UnsupportedFeature, match=r"3\.42"):
        open_volumes(microversion="3.41").extend(volume, 2 * GIB)
    assert volumes.volume(volume).size == GIB


def test_nothing_is_sent_before_the_first_call():
    """An address that nobody answers at is no obstacle to making the object."""
    with (
        CinderVolumes.noauth("http://127.0.0.1:1/v3", project_id=services.PROJECT, attempts=1) as volumes,
        pytest.raises(errors.VolumeServiceUnavailable),
    ):
        volumes.features()


def test_a_project_that_is_no_id_is_refused():
    """Cinder would answer 404 to every call."""
    with pytest.raises(errors.InvalidArgument, match="project_id"):
        CinderVolumes.noauth("http://127.0.0.1:1/v3", project_id="demo")


# ------------------------------------------------------------------------------------------------------------- reading


def test_the_status_of_an_answer_is_not_stale(volumes, new_volume):
    """Cinder's own answer to update still says reserved."""
    made = volumes.reserve(new_volume(), instance())
    assert volumes.update(made.id, connector()).status is AttachmentStatus.ATTACHING


def test_read_only_is_kept_on_both_ways_to_attach(volumes, new_volume):
    first = volumes.reserve(new_volume(), instance(), mode="ro")
    second = volumes.create(new_volume(), instance(), connector(), mode="ro")
    assert volumes.update(first.id, connector()).mode == "ro"
    assert volumes.attachment(second.id).mode == "ro"


def test_only_an_administrator_learns_the_host(volumes, new_volume):
    """noauth makes everybody an administrator; that plain users see none is Cinder's own rule."""
    volume = new_volume(multiattach=True)
    for host in ("compute-1", "compute-2"):
        volumes.complete(volumes.create(volume, instance(), connector(host)).id)
    assert sorted(volumes.attached_hosts(volume).values()) == ["compute-1", "compute-2"]


def test_a_listing_reads_all_pages(open_volumes, volumes, new_volume):
    """Also where the last page is full."""
    volume, owner = new_volume(), instance()
    made = {volumes.reserve(volume, owner).id for _ in range(6)}
    small = open_volumes(page_size=2)
    assert {row.id for row in small.attachments(volume_id=volume)} == made
    assert {row.id for row in small.attachments(instance_id=owner)} == made
    assert small.attachments(volume_id=volume, instance_id=instance()) == ()


def test_a_listing_survives_the_loss_of_its_place(open_volumes, volumes, new_volume, monkeypatch):
    """The row that marks the place is deleted between two pages: every row that stays is still listed, once."""
    volume, owner = new_volume(), instance()
    made = [volumes.reserve(volume, owner).id for _ in range(5)]
    small = open_volumes(page_size=2)
    original, doomed = small._page, []

    def page(query, marker):
        if marker is not None and not doomed:
            doomed.append(marker)
            volumes.delete(marker)
        return original(query, marker)

    monkeypatch.setattr(small, "_page", page)
    listed = [row.id for row in small.attachments(volume_id=volume)]
    assert sorted(listed) == sorted(set(made) - set(doomed))


def test_a_listing_of_volumes_survives_the_loss_of_its_place(open_volumes, volumes, new_volume, monkeypatch):
    made = [new_volume() for _ in range(4)]
    small = open_volumes(page_size=2)
    original, doomed = small._page_of_volumes, []

    def page(marker):
        if marker in made and not doomed:
            doomed.append(marker)
            volumes.delete_volume(marker)
            until(lambda: gone(volumes, marker))
        return original(marker)

    monkeypatch.setattr(small, "_page_of_volumes", page)
    listed = [row.id for row in small.volumes()]
    assert doomed
    assert sorted(set(listed) & set(made)) == sorted(set(made) - set(doomed))
    assert len(listed) == len(set(listed))


def gone(volumes, volume_id):
    try:
        volumes.volume(volume_id)
    except errors.VolumeNotFound:
        return True
    return False


def test_extend_waits_and_rounds_up(volumes, new_volume):
    volume = new_volume()
    assert volumes.extend(volume, 2 * GIB - 1).size == 2 * GIB
    assert volumes.extend(volume, 2 * GIB).size == 2 * GIB
    with pytest.raises(errors.InvalidArgument, match="shrink"):
        volumes.extend(volume, GIB)


# ------------------------------------------------------------------------------------------------- refused, no effect


def test_a_404_that_names_nothing_is_not_an_absent_attachment(cinder):
    """Behind a wrong address delete must not report success."""
    wrong = cinder.endpoint.replace("/v3", "/v3/nowhere")
    with (
        CinderVolumes.noauth(wrong, project_id=services.PROJECT, attempts=1) as volumes,
        pytest.raises(errors.VolumeServiceUnavailable, match="names neither"),
    ):
        volumes.delete(instance())


@pytest.mark.parametrize("now", ["error", "error_extending", "maintenance", "creating", "detaching"])
def test_no_reservation_of_a_volume_in_a_wrong_status(cinder, volumes, new_volume, now):
    volume = new_volume()
    client = cinder.client()
    client.volumes.reset_state(volume, now)
    transient = now in ("creating", "detaching")
    with pytest.raises(errors.VolumeBusy if transient else errors.Conflict):
        volumes.reserve(volume, instance())
    with pytest.raises(errors.VolumeBusy if transient else errors.Conflict):
        volumes.create(volume, instance(), connector())
    assert volumes.attachments(volume_id=volume) == ()
    client.volumes.reset_state(volume, "available")


def test_a_volume_in_error_cannot_be_mapped(cinder, volumes, new_volume):
    volume = new_volume()
    made = volumes.reserve(volume, instance())
    cinder.client().volumes.reset_state(volume, "error")
    with pytest.raises(errors.Conflict):
        volumes.update(made.id, connector())
    cinder.client().volumes.reset_state(volume, "available")


@pytest.mark.parametrize("mode", ["xx", "", None])
def test_a_mode_that_is_none_is_refused(volumes, new_volume, mode):
    volume = new_volume()
    with pytest.raises(errors.InvalidArgument, match="mode"):
        volumes.reserve(volume, instance(), mode=mode)
    assert volumes.attachments(volume_id=volume) == ()


def test_a_plain_user_cannot_let_go_of_what_is_attached(cinder, volumes, new_volume):
    """Without the service role Cinder asks Nova, and there is none: the outcome is unknown, the attachment stays."""
    made = volumes.create(new_volume(), instance(), connector())
    user = CinderVolumes(cinder.session(service=False), attempts=2, sleep=lambda _: None)
    user._calls._http._noauth = False  # as with Keystone: no header helps
    with pytest.raises(errors.OutcomeUnknown, match="500"):
        user.delete(made.id)
    assert volumes.attachment(made.id).status is AttachmentStatus.ATTACHING


class ServiceAccount:
    """A keystoneauth plugin, as far as tokens are concerned."""

    def __init__(self, token):
        self.token, self.asked = token, 0

    def get_token(self, session):
        self.asked += 1
        return self.token


def test_the_service_token_goes_along_with_deletes_only(cinder, volumes, new_volume):
    account = ServiceAccount("service-token")
    sent = []
    session = cinder.session(service=False)
    session.session.hooks["response"].append(lambda response, **_: sent.append(response.request))
    served = CinderVolumes(session, service_auth=account)
    made = served.reserve(new_volume(), instance())
    served.attachment(made.id)
    served.delete(made.id)
    tokens = {(request.method, request.headers.get("X-Service-Token")) for request in sent}
    assert ("DELETE", "service-token") in tokens
    assert {token for method, token in tokens if method != "DELETE"} == {None}
    assert account.asked == 1


def test_without_a_service_token_nothing_is_sent(cinder, volumes, new_volume):
    served = CinderVolumes(cinder.session(service=False), service_auth=ServiceAccount(None), attempts=1)
    made = served.reserve(new_volume(), instance())
    with pytest.raises(errors.VolumeServiceUnavailable, match="no service token"):
        served.delete(made.id)
    assert volumes.attachment(made.id)


# ------------------------------------------------------------------------------------------------------------- secrets


def test_no_secret_reaches_a_log(volumes, new_volume, caplog):
    """Not even at DEBUG, where keystoneauth writes down every answer."""
    with caplog.at_level(logging.DEBUG):
        made = volumes.create(new_volume(), instance(), connector())
        volumes.attachment(made.id)
    secret = made.connection.data["auth_password"]
    assert len(secret) > 8
    assert secret not in caplog.text
    assert secret not in repr(made)
    assert any(record.name == "cloudcore.attach.cinder" for record in caplog.records)


# ------------------------------------------------------------------------------------------------------------- threads


def test_of_many_reservations_at_once_one_succeeds_and_the_others_are_told_to_wait(volumes, new_volume):
    """One object, one volume, eight threads."""
    volume = new_volume(multiattach=True)
    start = threading.Barrier(8)

    def reserve(_):
        start.wait()
        try:
            return volumes.reserve(volume, instance())
        except errors.VolumeBusy as busy:
            return busy

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(reserve, range(8)))
    made = [result for result in results if not isinstance(result, errors.VolumeBusy)]
    assert len(made) == 1
    assert [row.id for row in volumes.attachments(volume_id=volume)] == [made[0].id]


def test_threads_do_not_mix_up_their_answers(volumes, new_volume):
    """Each thread attaches its own volume through one shared object, and lists meanwhile."""
    owned = {new_volume(): instance() for _ in range(4)}

    def attach(item):
        volume, owner = item
        made = volumes.create(volume, owner, connector())
        volumes.complete(made.id)
        rows = volumes.attachments(volume_id=volume)
        return [(row.volume_id, row.instance_id, row.status) for row in rows]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(attach, owned.items()))
    assert found == [[(volume, owner, AttachmentStatus.ATTACHED)] for volume, owner in owned.items()]
