"""CinderVolumes on a Cinder that asks Keystone who everybody is: catalog, roles, service tokens."""

import uuid

import pytest
from keystoneauth1.identity import v3
from keystoneauth1.session import Session

from cloudcore import errors
from cloudcore.attach.volumes.cinder import CinderVolumes
from cloudcore.attach.volumes.values import AttachmentStatus, Connector
from tests import services
from tests.attach.keystone_stub import PASSWORD, Account, StubKeystone

pytestmark = pytest.mark.xdist_group("cinder-keystone")

HOST = Connector(host="compute-1", ip="127.0.0.1")
SERVICE_PROJECT = "f" * 32


@pytest.fixture(scope="module")
def keystone():
    accounts = [
        Account("alice", services.PROJECT, ("member", "reader")),
        Account("cloudcore", SERVICE_PROJECT, ("service",)),
        Account("stranger", SERVICE_PROJECT, ("member",)),
        Account("cinder", SERVICE_PROJECT, ("admin", "service")),
    ]
    with StubKeystone(accounts) as keystone:
        yield keystone


@pytest.fixture(scope="module")
def cinder(keystone):
    authentication = {
        "www_authenticate_uri": keystone.url,
        "auth_url": keystone.url,
        "auth_type": "password",
        "username": "cinder",
        "password": PASSWORD,
        "project_name": "service",
        "user_domain_id": "default",
        "project_domain_id": "default",
        "service_token_roles": "service",
        "service_token_roles_required": "true",
    }
    settings = {f"keystone_authtoken/{name}": value for name, value in authentication.items()}
    cinder = services.cinder(variant="attach-keystone", auth_strategy="keystone", **settings)
    keystone.volume_url = f"{cinder.endpoint}/{services.PROJECT}"
    return cinder


@pytest.fixture
def login(keystone):
    def plugin(name, password=PASSWORD):
        return v3.Password(
            auth_url=keystone.url,
            username=name,
            password=password,
            project_name="any",
            user_domain_id="default",
            project_domain_id="default",
        )

    return plugin


@pytest.fixture
def served(cinder, login):
    """As it should be: a user of the project, and a service account."""
    return CinderVolumes(Session(auth=login("alice")), service_auth=login("cloudcore"), region_name="one")


@pytest.fixture
def attached(cinder, served):
    """An attachment in use; it is gone at the end, and the volume too."""
    volume = cinder.create_volume()
    made = served.create(volume, str(uuid.uuid4()), HOST)
    served.complete(made.id)
    yield made
    served.delete(made.id)
    served.delete_volume(volume)


def test_attach_and_detach_by_catalog_and_service_token(served, attached):
    assert served.features().microversion == "3.71"
    assert served.attachment(attached.id).status is AttachmentStatus.ATTACHED
    served.delete(attached.id)
    with pytest.raises(errors.AttachmentNotFound):
        served.attachment(attached.id)


def test_without_a_service_token_what_is_in_use_is_not_let_go(cinder, login, served, attached):
    """Claiming the role in a header does not help where Keystone is asked."""
    user = CinderVolumes(Session(auth=login("alice")), attempts=1, region_name="one")
    user._calls._http._noauth = True
    with pytest.raises(errors.OutcomeUnknown):
        user.delete(attached.id)
    assert served.attachment(attached.id).status is AttachmentStatus.ATTACHED


def test_a_token_without_the_service_role_is_no_service_token(login, served, attached):
    wrong = CinderVolumes(Session(auth=login("alice")), service_auth=login("stranger"), attempts=1, region_name="one")
    with pytest.raises((errors.PolicyDenied, errors.OutcomeUnknown)):
        wrong.delete(attached.id)
    assert served.attachment(attached.id).status is AttachmentStatus.ATTACHED


def test_a_plain_user_does_not_learn_the_host(cinder, login, served, attached):
    """Only administrators and services do."""
    assert served.attached_hosts(attached.volume_id) == {}
    with CinderVolumes.noauth(cinder.endpoint, project_id=services.PROJECT, user_id="root") as administrator:
        assert administrator.attached_hosts(attached.volume_id) == {attached.id: "compute-1"}


def test_another_projects_volume_does_not_exist(cinder, login, attached):
    """For a user of another project; nothing is said of its state."""
    stranger = CinderVolumes(
        Session(auth=login("stranger")), region_name="one", os_endpoint=f"{cinder.endpoint}/{SERVICE_PROJECT}"
    )
    for call in (
        lambda: stranger.volume(attached.volume_id),
        lambda: stranger.reserve(attached.volume_id, str(uuid.uuid4())),
    ):
        with pytest.raises(errors.VolumeNotFound):
            call()
    with pytest.raises(errors.AttachmentNotFound):
        stranger.attachment(attached.id)
    assert stranger.attachments(volume_id=attached.volume_id) == ()


def test_a_wrong_password_is_denied(cinder, login):
    user = CinderVolumes(Session(auth=login("alice", "wrong")), attempts=1, region_name="one")
    with pytest.raises(errors.PolicyDenied, match="not logged in"):
        user.features()


def test_a_region_without_cinder_is_unavailable(cinder, login):
    user = CinderVolumes(Session(auth=login("alice")), attempts=1, region_name="two")
    with pytest.raises(errors.VolumeServiceUnavailable, match="nothing was sent"):
        user.features()


def test_tokens_are_used_again(served, keystone, attached):
    """One login for each account, however many calls."""
    served.delete(attached.id)
    before = list(keystone.logins)
    for _ in range(3):
        served.attachments()
        served.delete(attached.id)
    assert keystone.logins == before
