"""Answers that are not Cinder's, given by a gateway in front of a real one: none is believed.

After every one of them the manager comes to an end in which every store agrees, and no error is a bare one.
"""

import contextlib
import uuid

import pytest

from cloudcore import errors
from cloudcore.attach.hosts.guests import MemoryGuests
from cloudcore.attach.lifecycle.states import State
from cloudcore.attach.volumes.cinder import CinderVolumes
from cloudcore.attach.volumes.cinder_rules import Call, Effect, seconds_to_wait, strange
from cloudcore.attach.volumes.values import Connector
from tests import services
from tests.attach.cinder_pool import pool
from tests.attach.gateway import Gateway, json, page

from .conftest import instance

OTHER = "99999999-9999-4999-8999-999999999999"
HOST = Connector(host="compute-1", ip="127.0.0.1")

NONSENSE = {
    "login page": page(),
    "login page as JSON": page(kind="application/json"),
    "nothing": page(body=b""),
    "null": json(b"null"),
    "a list": json(b"[]"),
    "an empty object": json(b"{}"),
    "null inside": json(b'{"attachment": null, "volume": null, "attachments": null}'),
    "text inside": json(b'{"attachment": "x", "volume": "x", "attachments": "x"}'),
    "cut off": json(b'{"attachment": {"id": "'),
    "not found page": page(404),
    "teapot": page(418),
}


@pytest.fixture(scope="module")
def cinder():
    return services.cinder("file")


@pytest.fixture(scope="module")
def gateway(cinder):
    with Gateway(cinder.port) as gateway:
        yield gateway


@pytest.fixture
def volumes(cinder, gateway):
    """Through the gateway, without repetitions; the gateway is honest until told otherwise, and at the end."""
    with CinderVolumes.noauth(
        cinder.url(gateway.port), project_id=services.PROJECT, attempts=2, sleep=lambda _: None
    ) as volumes:
        volumes.features()
        yield volumes
    gateway.heal()


@pytest.fixture
def volume(cinder, gateway):
    volume = pool(cinder).take()
    yield volume
    pool(cinder).give_back(volume)


@pytest.mark.services
@pytest.mark.parametrize("nonsense", NONSENSE)
def test_no_call_believes_nonsense(gateway, volumes, volume, nonsense):
    """Reads are unavailable or nonsense; whatever changes something has an unknown outcome, or none."""
    owner, answer = str(uuid.uuid4()), NONSENSE[nonsense]
    refused = answer[0] >= 400
    made = volumes.reserve(volume, owner)
    changing = errors.VolumeServiceUnavailable if refused else errors.OutcomeUnknown
    reading = (errors.VolumeServiceUnavailable, errors.VolumeServiceError)
    for method, part, call, expected in [
        ("GET", f"/volumes/{volume}", lambda: volumes.volume(volume), reading),
        ("GET", "/volumes/detail", volumes.volumes, reading),
        ("GET", "/attachments/", lambda: volumes.attachment(made.id), reading),
        ("GET", "/attachments?", lambda: volumes.attachments(volume_id=volume), reading),
        ("POST", "/attachments", lambda: volumes.reserve(volume, owner), changing),
        ("POST", "/attachments", lambda: volumes.create(volume, owner, HOST), changing),
        ("PUT", "/attachments/", lambda: volumes.update(made.id, HOST), changing),
        ("POST", "/action", lambda: volumes.complete(made.id), changing),
        ("DELETE", "/attachments/", lambda: volumes.delete(made.id), changing),
    ]:
        gateway.answer(method, part, answer)
        with pytest.raises(expected) as caught:
            call()
        assert "log in" not in str(caught.value)
        assert caught.value.__context__ is None or isinstance(caught.value.__context__, errors.CloudcoreError)
        gateway.heal()
    volumes.delete(made.id)
    assert volumes.attachments(volume_id=volume) == ()


@pytest.mark.services
def test_answers_about_something_else_are_none(gateway, volumes, volume):
    """A cache that mixes up its keys."""
    owner = str(uuid.uuid4())
    made = volumes.reserve(volume, owner)
    swapped = json(
        f'{{"attachment": {{"id": "{OTHER}", "volume_id": "{OTHER}", "instance": "{OTHER}", "status": "attached"}},'
        f' "volume": {{"id": "{OTHER}", "status": "available", "size": 1}}}}'.encode()
    )
    for method, part, call, expected in [
        ("GET", "/volumes/", lambda: volumes.volume(volume), errors.VolumeServiceError),
        ("GET", "/attachments/", lambda: volumes.attachment(made.id), errors.VolumeServiceError),
        ("POST", "/attachments", lambda: volumes.reserve(volume, owner), errors.OutcomeUnknown),
        ("PUT", "/attachments/", lambda: volumes.update(made.id, HOST), errors.OutcomeUnknown),
    ]:
        gateway.answer(method, part, swapped)
        with pytest.raises(expected):
            call()
        gateway.heal()
    volumes.delete(made.id)


@pytest.mark.services
def test_a_filter_that_got_lost_makes_nobodys_records_ours(cinder, gateway, volumes, volume):
    """A gateway that drops the query: what is asked by volume and instance is what is returned."""
    other = pool(cinder).take()
    mine, theirs = volumes.reserve(volume, str(uuid.uuid4())), volumes.reserve(other, str(uuid.uuid4()))
    everything = (
        f'{{"attachments": [{{"id": "{mine.id}", "volume_id": "{volume}", "instance": "{mine.instance_id}", '
        f'"status": "reserved"}}, {{"id": "{theirs.id}", "volume_id": "{other}", "instance": "{theirs.instance_id}", '
        f'"status": "reserved"}}]}}'
    )
    gateway.answer("GET", "/attachments?", json(everything.encode()), times=1)
    assert [row.id for row in volumes.attachments(volume_id=volume)] == [mine.id]
    gateway.heal()
    for row in (mine, theirs):
        volumes.delete(row.id)
    pool(cinder).give_back(other)


@pytest.mark.services
@pytest.mark.parametrize("after", [False, True], ids=["instead", "afterwards"])
@pytest.mark.parametrize("nonsense", ["login page", "null"])
@pytest.mark.parametrize(
    ("method", "part"), [("POST", "/attachments"), ("PUT", "/attachments/"), ("POST", "/action"), ("DELETE", "/att")]
)
def test_the_manager_comes_to_an_end(gateway, volumes, volume, new_manager, method, part, nonsense, after):
    """Once, or for as long as it takes; instead of Cinder's answer, or after Cinder has done it."""
    guests, who = MemoryGuests("compute-1"), instance()
    manager = new_manager(volumes, guests, patience=5.0)
    for times in (1, 10**6):
        gateway.answer(method, part, NONSENSE[nonsense], after=after, times=times)
        with contextlib.suppress(errors.CloudcoreError):
            made = manager.attach(volume, who)
            assert volumes.attachment(made.service_id).status == "attached"
            assert manager.detach(made.id).state is State.ABSENT
        gateway.heal()
        assert manager.recover().complete
        for leg in manager.attachments():
            manager.detach(leg.id)
        assert volumes.attachments(volume_id=volume) == ()
        assert volumes.volume(volume).status == "available"
        assert guests.disk_states() == ()
        assert manager.audit().clean


@pytest.mark.services
@pytest.mark.parametrize("status", [413, 429, 503])
def test_the_wait_that_is_asked_for_is_kept(cinder, gateway, volume, status):
    """In seconds, or as an instant; not beyond the time of the whole call."""
    for header, expected in (({"Retry-After": "30"}, 30.0), ({"Retry-After": "Thu, 01 Jan 2026 00:01:00 GMT"}, 60.0)):
        pauses = []
        with CinderVolumes.noauth(
            cinder.url(gateway.port), project_id=services.PROJECT, attempts=2, sleep=pauses.append, deadline=100.0
        ) as volumes:
            volumes.features()
            headers = {**header, "Date": "Thu, 01 Jan 2026 00:00:00 GMT", "Content-Type": "application/json"}
            gateway.answer("GET", "/volumes/", (status, headers, b'{"x": {"message": "slow down"}}'))
            with pytest.raises(errors.VolumeServiceUnavailable) as caught:
                volumes.volume(volume)
            assert caught.value.retry_after == expected
            assert pauses == [pytest.approx(expected, abs=0.5)]
            gateway.answer("GET", "/volumes/", (status, {**headers, "Retry-After": "101"}, b'{"x": {"message": "no"}}'))
            pauses.clear()
            with pytest.raises(errors.VolumeServiceUnavailable):
                volumes.volume(volume)
            assert pauses == []
            gateway.heal()


@pytest.mark.services
def test_every_volume_is_listed(cinder, volumes, volume):
    """Page by page."""
    other = pool(cinder).take()
    with CinderVolumes.noauth(cinder.endpoint, project_id=services.PROJECT, page_size=1) as one_by_one:
        found = {one.id: one for one in one_by_one.volumes()}
    assert {volume, other} <= set(found)
    assert found[volume] == volumes.volume(volume)
    pool(cinder).give_back(other)


# --- the rules -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "status", "body", "believed"),
    [
        ("complete", 204, None, True),
        ("complete", 200, None, False),
        ("complete", 204, {}, False),
        ("delete", 200, {"attachments": []}, True),
        ("delete", 200, {}, False),
        ("delete", 204, None, False),
        ("extend", 202, None, True),
        ("extend", 200, b"<html>", False),
        ("delete volume", 202, None, True),
        ("delete volume", 200, {"volume": {}}, False),
        ("show", 200, {"volume": {}}, True),
        ("show", 200, [], False),
        ("show", 204, None, False),
        ("show", 207, {"volume": {}}, False),
    ],
)
def test_what_each_call_is_answered(name, status, body, believed):
    assert (strange(Call(name, Effect.SAME), status, body) is None) is believed


@pytest.mark.parametrize(
    ("header", "date", "expected"),
    [
        (None, None, None),
        ("30", None, 30.0),
        (" 7 ", None, 7.0),
        ("0", None, None),
        ("-1", None, None),
        ("soon", None, None),
        ("9" * 40, None, None),
        ("Thu, 01 Jan 2026 00:01:00 GMT", "Thu, 01 Jan 2026 00:00:30 GMT", 30.0),
        ("Thu, 01 Jan 2026 00:01:00 GMT", None, None),
        ("Thu, 01 Jan 2026 00:00:00 GMT", "Thu, 01 Jan 2026 00:00:30 GMT", None),
    ],
)
def test_how_long_to_wait(header, date, expected):
    assert seconds_to_wait(header, date) == expected
