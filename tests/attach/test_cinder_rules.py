"""How Cinder's answers are read. The texts are those that Cinder 29 gave."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudcore import errors
from cloudcore.attach.volumes.cinder_rules import (
    GIB,
    Call,
    Effect,
    features_of,
    judge,
    negotiate,
    read_attachment,
    read_volume,
)
from cloudcore.attach.volumes.values import AttachmentStatus

VOLUME = "d2a3aa93-daaf-46d7-8f78-eef700cf3c02"
ATTACHMENT = "e60a7650-9994-48da-b0e4-c072b7b07989"
INSTANCE = "b5ebd140-1f8a-469b-9165-f35cab5464cc"

RESERVE = Call("reserve", Effect.ONCE, volume_id=VOLUME)
UPDATE = Call("update", Effect.SAME, attachment_id=ATTACHMENT)
DELETE = Call("delete", Effect.SAME, attachment_id=ATTACHMENT)
EXTEND = Call("extend", Effect.ONCE, volume_id=VOLUME)
SHOW = Call("show", Effect.NONE, attachment_id=ATTACHMENT)

MULTI = "available or in-use or downloading"
SINGLE = "available or downloading"


def status(allowed, now):
    return f"Invalid volume: Volume {VOLUME} status must be {allowed} to reserve, but the current status is {now}."


def in_error(now):
    return (
        "Invalid volume: Volume attachments can not be created if the volume is in an error state. "
        f"The Volume {VOLUME} currently has a status of: {now} "
    )


VERDICTS = [
    (RESERVE, 400, status(MULTI, "reserved"), errors.VolumeBusy),
    (RESERVE, 400, status(MULTI, "attaching"), errors.VolumeBusy),
    (RESERVE, 400, status(MULTI, "detaching"), errors.VolumeBusy),
    (RESERVE, 400, status(SINGLE, "creating"), errors.VolumeBusy),
    # Another caller was faster: the text shows what was read before the refusal.
    (RESERVE, 400, status(MULTI, "in-use"), errors.VolumeBusy),
    (RESERVE, 400, status(MULTI, "available"), errors.VolumeBusy),
    (RESERVE, 400, status(SINGLE, "available"), errors.VolumeBusy),
    (RESERVE, 400, status(SINGLE, "in-use"), errors.Conflict),
    (RESERVE, 400, status(SINGLE, "maintenance"), errors.Conflict),
    (RESERVE, 400, in_error("error"), errors.Conflict),
    (RESERVE, 400, in_error("error_deleting"), errors.Conflict),
    (
        EXTEND,
        400,
        f"Invalid volume: Volume {VOLUME} status must be '{{'status': 'available'}}' to extend, currently attaching.",
        errors.VolumeBusy,
    ),
    (
        RESERVE,
        400,
        "Invalid input for field/attribute instance_uuid. Value: x. 'x' is not a 'uuid'",
        errors.InvalidArgument,
    ),
    (
        UPDATE,
        400,
        "Invalid input for field/attribute connector. Value: {'s': 'secret'}. {} should be non-empty",
        errors.InvalidArgument,
    ),
    (
        UPDATE,
        400,
        "Invalid input received: Connector doesn't have required information: wwpns",
        errors.InvalidConnector,
    ),
    (RESERVE, 400, "Malformed request body", errors.InvalidArgument),
    (RESERVE, 404, f"Volume {VOLUME} could not be found.", errors.VolumeNotFound),
    (
        DELETE,
        404,
        f"Volume attachment could not be found with filter: attachment_id = {ATTACHMENT}.",
        errors.AttachmentNotFound,
    ),
    # Nobody looked for the attachment: that it is absent is not known.
    (DELETE, 404, "The resource could not be found.", errors.VolumeServiceUnavailable),
    (DELETE, 404, "<html>nginx</html>", errors.VolumeServiceUnavailable),
    (UPDATE, 409, f"Resource conflict: duplicate connectors detected on volume {VOLUME}", errors.Conflict),
    (DELETE, 409, "ConflictNovaUsingAttachment: Detach volume from instance using the Compute API", errors.Conflict),
    (RESERVE, 403, "Policy doesn't allow volume:attachment_create to be performed.", errors.PolicyDenied),
    (RESERVE, 401, "The request you have made requires authentication.", errors.PolicyDenied),
    (
        SHOW,
        406,
        "Version 3.99 is not supported by the API. Minimum is 3.0 and maximum is 3.71.",
        errors.UnsupportedFeature,
    ),
    (EXTEND, 413, "VolumeSizeExceedsAvailableQuota: Requested volume or snapshot exceeds", errors.LimitExceeded),
    (RESERVE, 429, "", errors.VolumeServiceUnavailable),
    (RESERVE, 500, "Unable to create attachment for volume.", errors.OutcomeUnknown),
    (DELETE, 500, "The server has either erred", errors.OutcomeUnknown),
    (UPDATE, 502, "Bad Gateway", errors.OutcomeUnknown),
    (UPDATE, 504, "Gateway Timeout", errors.OutcomeUnknown),
    (SHOW, 500, "The server has either erred", errors.VolumeServiceUnavailable),
    (RESERVE, 503, "Service Unavailable", errors.VolumeServiceUnavailable),
    (RESERVE, 302, "", errors.VolumeServiceUnavailable),
]


@pytest.mark.parametrize(("call", "code", "message", "expected"), VERDICTS)
def test_a_refusal_becomes_the_error_that_tells_the_truth(call, code, message, expected):
    """Busy, forbidden for good, malformed, absent, unknown: five different things, three of them HTTP 400."""
    verdict = judge(call, code, message, request_id="req-1", retry_after=None)
    assert type(verdict) is expected


def test_too_fast_is_not_over_quota():
    """Cinder says 413 to both; only the first carries Retry-After."""
    verdict = judge(RESERVE, 413, "slow down", request_id=None, retry_after=3.0)
    assert isinstance(verdict, errors.VolumeServiceUnavailable)
    assert verdict.retry_after == 3.0


@given(st.sampled_from([RESERVE, UPDATE, DELETE, EXTEND, SHOW]), st.integers(500, 599), st.text(min_size=8))
def test_what_a_failing_server_says_is_never_passed_on(call, code, message):
    """It may quote the backend, with its passwords; the request id is what leads to it."""
    verdict = judge(call, code, f"chap-password {message}", request_id="req-7", retry_after=None)
    assert "chap-password" not in str(verdict)
    assert "req-7" in str(verdict)


@given(st.sampled_from([RESERVE, UPDATE, DELETE, EXTEND]), st.integers(500, 599))
def test_a_failure_of_a_changing_call_is_never_certain(call, code):
    """Except 503, which is said before anything is done."""
    verdict = judge(call, code, "", request_id=None, retry_after=None)
    assert isinstance(verdict, errors.VolumeServiceUnavailable if code == 503 else errors.OutcomeUnknown)


def test_a_refused_value_is_not_repeated():
    """A connector may hold secrets; the name of the field is enough."""
    text = "Invalid input for field/attribute connector. Value: {'auth': 'secret'}. ..."
    verdict = judge(UPDATE, 400, text, request_id=None, retry_after=None)
    assert verdict.field == "connector"
    assert "secret" not in str(verdict)


# ------------------------------------------------------------------------------------------------------------- versions


def test_negotiation_takes_the_newest_that_both_know():
    assert negotiate("3.0", "3.99") == "3.71"
    assert negotiate("3.0", "3.54") == "3.54"
    assert negotiate("3.0", "3.71", "3.50") == "3.50"
    assert negotiate("3.0", "3.27") == "3.27"


@pytest.mark.parametrize(
    ("oldest", "newest", "wanted"),
    [("3.0", "3.26", None), ("3.0", "3.71", "3.26"), ("3.72", "3.80", None), ("3.60", "3.71", "3.50")],
)
def test_without_a_common_version_that_has_attachments_there_is_no_talk(oldest, newest, wanted):
    with pytest.raises(errors.UnsupportedFeature) as caught:
        negotiate(oldest, newest, wanted)
    assert (caught.value.needed, caught.value.available) == ("3.27", newest)


@pytest.mark.parametrize("text", ["3", "latest", "", "3.x"])
def test_a_malformed_bound_is_refused(text):
    with pytest.raises(errors.InvalidArgument, match="microversion"):
        negotiate("3.0", "3.71", text)


FEATURES = {"3.41": (), "3.43": ("extend_in_use",), "3.44": ("extend_in_use", "complete")}
FEATURES["3.48"] = (*FEATURES["3.44"], "shared_targets")
FEATURES["3.50"] = (*FEATURES["3.48"], "multiattach")
FEATURES["3.54"] = FEATURES["3.71"] = (*FEATURES["3.50"], "mode")


@pytest.mark.parametrize("version", FEATURES)
def test_features_come_with_their_versions(version):
    features = features_of(version)
    names = {"extend_in_use", "complete", "shared_targets", "multiattach", "mode"}
    assert {name for name in names if getattr(features, name)} == set(FEATURES[version])
    assert features.microversion == version


# -------------------------------------------------------------------------------------------------------------- answers


def attachment(**changes):
    return {
        "id": ATTACHMENT,
        "status": "reserved",
        "instance": INSTANCE,
        "volume_id": VOLUME,
        "attached_at": "",
        "detached_at": "",
        "attach_mode": "rw",
        "connection_info": {},
        **changes,
    }


def test_a_reservation_has_no_connection():
    found = read_attachment(attachment())
    assert (found.status, found.mode, found.connection) == (AttachmentStatus.RESERVED, "rw", None)


def test_no_mode_is_said_as_a_text():
    """Cinder answers the four letters "null"."""
    assert read_attachment(attachment(attach_mode="null")).mode is None


def test_the_instant_of_mapping_is_not_that_of_attaching():
    instant = "2026-11-22T08:47:06.082553"
    assert read_attachment(attachment(status="attaching", attached_at=instant)).attached_at is None
    found = read_attachment(attachment(status="attached", attached_at=instant)).attached_at
    assert found.isoformat() == f"{instant}+00:00"


def test_the_short_form_of_a_listing_is_enough():
    short = {key: attachment()[key] for key in ("id", "status", "instance", "volume_id")}
    assert read_attachment(short).mode is None


def test_connection_information_shows_no_secret():
    info = {"driver_volume_type": "iscsi", "target_lun": 1, "auth_password": "hush", "new_vendor_key": "hush"}
    found = read_attachment(attachment(status="attaching", connection_info=info))
    assert found.connection.data["auth_password"] == "hush"
    assert "hush" not in repr(found)


def volume(**changes):
    return {"id": VOLUME, "status": "in-use", "size": 3, "name": None, "bootable": "true", "metadata": {}, **changes}


def test_a_volume_is_read():
    found = read_volume(
        volume(multiattach=True, service_uuid=INSTANCE, shared_targets=False, metadata={"readonly": "True"}),
        features_of("3.71"),
    )
    assert (found.size, found.bootable, found.multiattach, found.read_only) == (3 * GIB, True, True, True)
    assert (found.shared_targets, found.service_uuid) == (False, INSTANCE)


@pytest.mark.parametrize(
    ("version", "said", "read"),
    [
        ("3.71", True, True), ("3.71", False, False), ("3.71", None, None),
        ("3.69", True, True), ("3.69", False, False), ("3.69", None, None),
        ("3.68", True, None), ("3.68", False, False), ("3.48", True, None), ("3.48", False, False),
        ("3.47", True, None), ("3.47", False, None),
    ],
)  # fmt: skip
def test_whether_targets_are_shared_has_three_values(version, said, read):
    """An old service must not read as "not shared", nor its "shared", which may mean "unknown", as "perhaps not"."""
    assert read_volume(volume(shared_targets=said), features_of(version)).shared_targets is read


@pytest.mark.parametrize("body", [{}, attachment(status="levitating"), attachment(connection_info={"name": "x"}), []])
def test_nonsense_is_noticed(body):
    with pytest.raises((KeyError, TypeError, ValueError, AttributeError)):
        read_attachment(body)
