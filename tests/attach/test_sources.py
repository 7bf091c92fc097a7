"""Connection information: what drivers say is read as Nova reads it, and what nobody can read is a typed error."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudcore import errors
from cloudcore.attach.volumes.sources import DiskOptions, options_of, source_of
from cloudcore.attach.volumes.values import ConnectionInfo
from cloudcore.disks import DiskLimits, IscsiSource, RbdSource

RBD = {
    "name": "pool/image",
    "hosts": ["mon-1", "mon-2"],
    "ports": ["6789", 3300],
    "auth_enabled": True,
    "auth_username": "cinder",
    "secret_uuid": "11111111-1111-4111-8111-111111111111",
}
ISCSI = {"target_portal": "[fd00::1]:3260", "target_iqn": "iqn.2026-01.org:one", "target_lun": "1"}
LOCAL = {"device_path": "/var/lib/volumes/one", "format": "raw"}
OPTIONS = {
    "access_mode": "rw",
    "logical_block_size": "512",
    "physical_block_size": 4096,
    "discard": True,
    "encrypted": False,
    "qos_specs": {"total_iops_sec": "500", "consumer": "front-end"},
}
GOOD = {"rbd": {**RBD, **OPTIONS}, "iscsi": {**ISCSI, **OPTIONS}, "local": {**LOCAL, **OPTIONS}}


def read_all(info):
    return source_of(info), options_of(info)


def test_good_information():
    rbd = source_of(ConnectionInfo("rbd", RBD))
    assert rbd == RbdSource(
        pool="pool",
        image="image",
        hosts=(("mon-1", 6789), ("mon-2", 3300)),
        user="cinder",
        secret_id=RBD["secret_uuid"],
    )
    iscsi = source_of(ConnectionInfo("iscsi", ISCSI))
    assert iscsi == IscsiSource(host="fd00::1", port=3260, target="iqn.2026-01.org:one", lun=1)


def test_options_are_read_as_nova_reads_them():
    """Numbers as text, what is not a limit left to others, limits that are all zero left out."""
    assert options_of(ConnectionInfo("rbd", OPTIONS)) == DiskOptions(
        logical_block_size=512,
        physical_block_size=4096,
        discard="unmap",
        limits=DiskLimits(total_iops_sec=500),
    )
    assert options_of(ConnectionInfo("rbd", RBD)) == DiskOptions()
    assert options_of(ConnectionInfo("rbd", {"qos_specs": {"total_iops_sec": 0}, "access_mode": "ro"})) == DiskOptions(
        read_only=True
    )
    assert options_of(ConnectionInfo("rbd", {"encrypted": "True", "discard": "false"})).encrypted


@pytest.mark.parametrize(
    ("kind", "changes", "key"),
    [
        ("rbd", {"ports": ["6789"]}, "ports"),
        ("rbd", {"ports": ["6789", "SECRETport"]}, "ports"),
        ("rbd", {"ports": 6789}, "ports"),
        ("rbd", {"hosts": []}, "hosts"),
        ("rbd", {"hosts": "mon-1"}, "hosts"),
        ("rbd", {"hosts": [None, "mon-2"]}, "hosts"),
        ("rbd", {"name": "SECRETimage"}, "name"),
        ("rbd", {"name": None}, "name"),
        ("rbd", {"auth_enabled": "SECRETtruth"}, "auth_enabled"),
        ("rbd", {"auth_username": None}, "auth_username"),
        ("iscsi", {"target_portal": "10.0.0.1"}, "target_portal"),
        ("iscsi", {"target_portal": ":3260"}, "target_portal"),
        ("iscsi", {"target_portal": "10.0.0.1:SECRET"}, "target_portal"),
        ("iscsi", {"target_lun": None}, "target_lun"),
        ("iscsi", {"target_lun": True}, "target_lun"),
        ("iscsi", {"target_iqn": ["iqn"]}, "target_iqn"),
        ("local", {"device_path": 7}, "device_path"),
        ("local", {"device_path": "/dev/SECRET\0"}, "device_path"),
        ("rbd", {"logical_block_size": "SECRETsize"}, "logical_block_size"),
        ("rbd", {"physical_block_size": 5000}, "physical_block_size"),
        ("rbd", {"qos_specs": ["SECRET"]}, "qos_specs"),
        ("rbd", {"qos_specs": {"read_bytes_sec": "-1"}}, "qos_specs"),
        ("rbd", {"discard": "SECRETdiscard"}, "discard"),
        ("rbd", {"encrypted": [True]}, "encrypted"),
        ("rbd", {"access_mode": "SECRETmode"}, "access_mode"),
    ],
)
def test_malformed_information_names_the_key_and_no_value(kind, changes, key):
    info = ConnectionInfo(kind, {**GOOD[kind], **changes})
    with pytest.raises(errors.VolumeServiceError, match=key) as caught:
        read_all(info)
    assert "SECRET" not in str(caught.value)
    assert caught.value.__context__ is None


junk = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(min_size=1),
    st.binary(),
    st.lists(st.one_of(st.none(), st.integers(), st.text())),
    st.dictionaries(st.text(), st.one_of(st.none(), st.text(), st.integers())),
)


@given(kind=st.sampled_from(sorted(GOOD)), data=st.data())
def test_whatever_a_driver_says_is_read_or_a_typed_error(kind, data):
    """One or more keys hold anything at all."""
    said = dict(GOOD[kind])
    for key in data.draw(st.lists(st.sampled_from(sorted(said)), min_size=1, unique=True)):
        said[key] = data.draw(junk)
    info = ConnectionInfo(kind, said)
    with contextlib.suppress(errors.VolumeServiceError, errors.UnsupportedFeature):
        read_all(info)
