"""Disks as XML: golden files, and what is written is what is read, for any disk."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudcore.disks import (
    BlockSource,
    Disk,
    DiskBus,
    DiskLimits,
    FileSource,
    IscsiSource,
    LuksEncryption,
    RbdSource,
)
from cloudcore.errors import HypervisorError, InvalidDisk, LimitExceeded
from cloudcore.hypervisor.disks.guests import GuestView
from cloudcore.hypervisor.disks.places import pick_target, pick_unit
from cloudcore.hypervisor.disks.xml import (
    alias_of,
    check_disk,
    differences,
    disk_xml,
    domain_disks,
    effective,
    passed_units,
    secret_xml,
)

GOLDEN = Path(__file__).parent / "golden"
VOLUME = "0f7c1a2b-3c4d-4e5f-8a9b-0c1d2e3f4a5b"
SECRET = "11111111-2222-4333-8444-555555555555"
MONITORS = (("10.0.0.1", 6789), ("10.0.0.2", 6789))

DISKS = {
    "rbd_shared": Disk(
        volume_id=VOLUME,
        source=RbdSource(pool="volumes", image=f"volume-{VOLUME}", hosts=MONITORS, user="cinder", secret_id=SECRET),
        shareable=True,
        target="vdb",
        discard="unmap",
        cache="writeback",  # which a shareable disk does not get
    ),
    "rbd_plain": Disk(volume_id=VOLUME, source=RbdSource(pool="p", image="i", hosts=(("m", 3300),)), target="vda"),
    "iscsi_read_only": Disk(
        volume_id=VOLUME,
        source=IscsiSource(
            host="10.0.0.9", port=3260, target="iqn.2010-10.org.example:v1", lun=1, user="u", secret_id=SECRET
        ),
        read_only=True,
        bus=DiskBus.SCSI,
        target="sdc",
    ),
    "block_boot": Disk(
        volume_id=VOLUME,
        source=BlockSource("/dev/disk/by-id/wwn-0x1"),
        target="vda",
        boot_order=1,
        io="native",
        logical_block_size=512,
        physical_block_size=4096,
    ),
    "file_qcow2": Disk(
        volume_id=VOLUME,
        source=FileSource("/images/a & b.qcow2", "qcow2"),
        target="vdaa",
        cache="writeback",
        io="native",
    ),
    "limited": Disk(
        volume_id=VOLUME,
        source=FileSource("/images/a.img"),
        target="vdc",
        limits=DiskLimits(total_iops_sec=500, total_iops_sec_max=900, size_iops_sec=4096, read_bytes_sec=1 << 20),
        queues=2,
        discard="unmap",
    ),
    "luks_rbd": Disk(
        volume_id=VOLUME,
        source=RbdSource(pool="volumes", image=f"volume-{VOLUME}", hosts=MONITORS, user="cinder", secret_id=SECRET),
        target="vdd",
        encryption=LuksEncryption(secret_id="99999999-2222-4333-8444-555555555555"),
    ),
    "scsi_unit": Disk(
        volume_id=VOLUME,
        source=FileSource("/images/a.img"),
        bus=DiskBus.SCSI,
        target="sdbz",
        unit=77,
        wwn="5000c50015ea71aa",
    ),
    "scsi_lun": Disk(
        volume_id=VOLUME, source=BlockSource("/dev/sdq"), bus=DiskBus.SCSI, target="sdd", unit=3, lun=True
    ),
}


def domain(*elements: str) -> str:
    return f"<domain><devices>{''.join(elements)}</devices></domain>"


def element(kind: str, device: str, source: str, target: str, bus: str, more: str = "") -> str:
    return f"<disk type='{kind}' device='{device}'>{source}<target dev='{target}' bus='{bus}'/>{more}</disk>"


@pytest.mark.parametrize("name", DISKS)
def test_golden(name):
    """The exact XML that libvirt gets. CLOUDCORE_GOLDEN=write makes the files anew; look at the difference then."""
    path = GOLDEN / f"{name}.xml"
    text = disk_xml(DISKS[name]) + "\n"
    if os.environ.get("CLOUDCORE_GOLDEN") == "write":
        path.write_text(text)
    assert text == path.read_text()


def test_what_only_some_disks_have():
    """Rules in words, beside the golden files."""
    shared = ET.fromstring(disk_xml(DISKS["rbd_shared"]))
    assert shared.find("driver").get("cache") == "none"
    assert shared.find("shareable") is not None
    assert shared.findtext("serial") == VOLUME
    assert shared.find("alias").get("name") == alias_of(VOLUME) == f"ua-{VOLUME}"
    assert shared.find("source/auth/secret").attrib == {"type": "ceph", "uuid": SECRET}
    assert ET.fromstring(disk_xml(DISKS["file_qcow2"])).find("driver").get("io") == "threads"  # its cache is not direct
    assert ET.fromstring(disk_xml(DISKS["block_boot"])).find("driver").get("io") == "native"
    with pytest.raises(InvalidDisk):
        disk_xml(attrs.evolve(DISKS["rbd_plain"], target=None))


def test_what_is_asked_of_a_disk_and_cannot_be_is_refused():
    """Instead of being left out, or found out by QEMU when the volume is mapped already."""
    virtio, scsi = DISKS["rbd_plain"], DISKS["scsi_unit"]
    wrong = [
        (virtio, {"limits": DiskLimits(total_iops_sec=1, read_iops_sec=1)}, "limits.total_iops_sec"),
        (virtio, {"limits": DiskLimits(total_bytes_sec=1, write_bytes_sec=1)}, "limits.total_bytes_sec"),
        (virtio, {"limits": DiskLimits(read_iops_sec_max=1)}, "limits.read_iops_sec_max"),
        (virtio, {"limits": DiskLimits(write_bytes_sec=-1)}, "limits.write_bytes_sec"),
        (virtio, {"limits": DiskLimits(size_iops_sec=4096, total_bytes_sec=5)}, "limits.size_iops_sec"),
        (virtio, {"encryption": LuksEncryption(secret_id="s")}, "encryption"),
        (virtio, {"encryption": LuksEncryption(secret_id=SECRET, key_id="a\0b")}, "encryption"),
        (virtio, {"wwn": "5000c50015ea71aa"}, "wwn"),
        (virtio, {"unit": 1}, "unit"),
        (virtio, {"queues": 0}, "queues"),
        (virtio, {"lun": True}, "lun"),
        (scsi, {"wwn": "50"}, "wwn"),
        (scsi, {"unit": 256}, "unit"),
        (scsi, {"queues": 2}, "queues"),
        (scsi, {"iothread": 1}, "iothread"),
        (DISKS["scsi_lun"], {"logical_block_size": 512}, "logical_block_size"),
        (DISKS["scsi_lun"], {"encryption": LuksEncryption(secret_id=SECRET)}, "encryption"),
    ]
    for disk, change, field in wrong:
        with pytest.raises(InvalidDisk) as caught:
            check_disk(attrs.evolve(disk, **change))
        assert caught.value.field == field
    for disk in DISKS.values():
        check_disk(disk)


def test_a_raw_disk_has_no_serial_and_is_known_by_its_alias():
    (entry,) = domain_disks(domain(disk_xml(DISKS["scsi_lun"])))
    assert (entry.serial, entry.disk) == (None, effective(DISKS["scsi_lun"]))


def test_scsi_units():
    """The lowest free one of the first controller, whoever has the others; and a bound."""
    disk, there = attrs.evolve(DISKS["scsi_unit"], unit=None), {0, 1, 3}
    assert pick_unit(disk, there) == 2
    assert pick_unit(attrs.evolve(disk, unit=9), there) == 9
    assert pick_unit(DISKS["rbd_plain"], there) is None
    with pytest.raises(InvalidDisk, match="3 is in use"):
        pick_unit(attrs.evolve(disk, unit=3), there)
    with pytest.raises(LimitExceeded):
        pick_unit(disk, set(range(256)))


def drive(unit: int, controller: int = 0) -> str:
    return f"<address type='drive' controller='{controller}' bus='0' target='0' unit='{unit}'/>"


PASSED = (
    "<hostdev mode='subsystem' type='{}'><source><adapter name='scsi_host7'/><address bus='0' target='0' unit='9'/>"
    "</source>{}</hostdev>"
)


def test_units_that_no_volume_has():
    """A boot disk from an image, a CD-ROM and a device of the host's have theirs too; other buses and controllers none
    of the first SCSI controller's."""
    source = "<source file='/a'/>"
    definition = domain(
        element("file", "disk", source, "sda", "scsi", drive(0)),
        element("file", "cdrom", "", "sdb", "scsi", drive(1)),
        element("file", "cdrom", "", "sdc", "sata", drive(2)),
        element("file", "disk", source, "sdd", "scsi", drive(3, controller=1)),
        element("file", "disk", source, "sde", "scsi", f"<serial>{VOLUME}</serial>" + drive(4)),
        PASSED.format("scsi", drive(5)),
        PASSED.format("scsi", drive(6, controller=1)),
        PASSED.format("usb", "<address type='usb' bus='0' port='7'/>"),
    )
    entries = domain_disks(definition)
    assert [entry.unit for entry in entries] == [0, 1, None, None, 4]
    assert passed_units(definition) == {5}
    for live, persistent in ((entries, None), (None, entries), (entries[:2], entries[2:])):
        view = GuestView(instance_id=VOLUME, state="off", live=live, persistent=persistent, passed_units=frozenset({5}))
        assert view.units == {0, 1, 4, 5}


def test_secrets_as_xml():
    ceph, iscsi = ET.fromstring(secret_xml(SECRET, "ceph", "client.x")), ET.fromstring(secret_xml(SECRET, "iscsi", "t"))
    assert (ceph.findtext("uuid"), ceph.findtext("usage/name"), ceph.get("private")) == (SECRET, "client.x", "yes")
    assert (iscsi.find("usage").get("type"), iscsi.findtext("usage/target")) == ("iscsi", "t")


# --- any disk --------------------------------------------------------------------------------------------------------

words = st.text(st.characters(exclude_categories=("C", "Z"), exclude_characters="/"), min_size=1, max_size=20)
paths = words.map(lambda word: f"/{word}")
ports = st.integers(1, 65535)
hosts = st.lists(st.tuples(words, ports), min_size=1, max_size=3).map(tuple)
credentials = st.one_of(st.just({}), st.fixed_dictionaries({"user": words, "secret_id": st.uuids().map(str)}))
sources = st.one_of(
    st.builds(BlockSource, paths),
    st.builds(FileSource, paths, st.sampled_from(["raw", "qcow2"])),
    st.builds(
        lambda given, auth: RbdSource(**given, **auth),
        st.fixed_dictionaries({"pool": words, "image": words, "hosts": hosts}),
        credentials,
    ),
    st.builds(
        lambda given, auth: IscsiSource(**given, **auth),
        st.fixed_dictionaries({"host": words, "port": ports, "target": words, "lun": st.integers(0, 255)}),
        credentials,
    ),
)
amounts = st.integers(1, 2**63 - 1)
disks = st.builds(
    Disk,
    volume_id=st.uuids().map(str),
    source=sources,
    read_only=st.booleans(),
    shareable=st.booleans(),
    bus=st.just(DiskBus.VIRTIO),
    target=st.sampled_from(["vda", "vdb", "vdz", "vdaa"]),
    boot_order=st.one_of(st.none(), st.integers(1, 9)),
    cache=st.sampled_from([None, "none", "writeback", "directsync"]),
    io=st.sampled_from([None, "native", "threads", "io_uring"]),
    discard=st.sampled_from([None, "unmap", "ignore"]),
    logical_block_size=st.sampled_from([None, 512, 4096]),
    physical_block_size=st.sampled_from([None, 512, 4096]),
    limits=st.one_of(
        st.none(),
        st.builds(
            DiskLimits,
            total_bytes_sec=amounts,
            read_iops_sec=amounts,
            write_iops_sec=amounts,
            write_iops_sec_max=amounts,
            size_iops_sec=amounts,
        ),
    ),
    encryption=st.one_of(st.none(), st.builds(LuksEncryption, secret_id=st.uuids().map(str))),
    queues=st.one_of(st.none(), st.integers(1, 64)),
    iothread=st.one_of(st.none(), st.integers(1, 9)),
)


@given(disks)
def test_what_is_written_is_what_is_read(disk):
    """Through XML and back it is the disk as it will really be, and writing it again changes nothing."""
    check_disk(disk)
    (entry,) = domain_disks(domain(disk_xml(disk)))
    assert entry.disk == effective(disk)
    assert (entry.target, entry.serial, entry.alias) == (disk.target, disk.volume_id, alias_of(disk.volume_id))
    assert differences(disk, entry.disk) == ()
    assert disk_xml(entry.disk) == disk_xml(disk)
    assert domain_disks(domain(entry.xml)) == (entry,)


@given(disks, sources, st.sampled_from(["source", "read_only", "shareable", "target"]))
def test_every_difference_that_matters_is_told(disk, other, field):
    changed = {
        "source": other,
        "read_only": not disk.read_only,
        "shareable": not disk.shareable,
        "target": "vdq",
    }[field]
    told = differences(disk, attrs.evolve(disk, **{field: changed}))
    same_place = field == "source" and differences(attrs.evolve(disk, source=other), disk) == ()
    assert bool(told) != same_place


def test_the_secret_is_the_same_in_any_form():
    """libvirt gives a UUID back in its own. What is none stays as others wrote it."""
    disk = attrs.evolve(DISKS["luks_rbd"], encryption=LuksEncryption(secret_id=SECRET, key_id="k"))
    for form in (SECRET.upper(), SECRET.replace("-", ""), f"{{{SECRET}}}"):
        source = attrs.evolve(disk.source, secret_id=form)
        other = attrs.evolve(disk, encryption=LuksEncryption(secret_id=form, key_id="k"), source=source)
        assert effective(other) == effective(disk)
        assert effective(other).encryption.key_id == "k"
        assert disk_xml(other) == disk_xml(disk)
        assert differences(disk, other) == differences(other, disk) == ()
    named = attrs.evolve(disk, encryption=LuksEncryption(secret_id=""))
    assert effective(named).encryption.secret_id == ""
    assert differences(disk, named) != ()


def test_monitors_may_change_but_the_image_may_not():
    disk = DISKS["rbd_plain"]
    moved = attrs.evolve(disk, source=attrs.evolve(disk.source, hosts=(("other", 1),)))
    assert differences(disk, moved) == ()
    assert "source" in differences(disk, attrs.evolve(disk, source=attrs.evolve(disk.source, image="j")))[0]


# --- what others wrote -----------------------------------------------------------------------------------------------


def test_disks_of_guests_that_others_made():
    """The alias counts, the serial is the fallback, a CD-ROM is no volume, and what is unknown is no match."""
    other = "aaaaaaaa-0000-4000-8000-000000000001"
    entries = domain_disks(
        domain(
            element("file", "cdrom", "", "sda", "sata"),
            element("block", "disk", "<source dev='/dev/x'/>", "vdb", "virtio", f"<serial>{VOLUME}</serial>"),
            element("block", "lun", "<source dev='/dev/y'/>", "sdb", "scsi", f"<alias name='ua-{other}'/>"),
            element("block", "disk", "<source dev='/dev/z'/>", "vdc", "virtio", "<serial>disk-7</serial>"),
            element("network", "disk", "<source protocol='nbd' name='e'/>", "vdd", "xen", f"<serial>{VOLUME}</serial>"),
        )
    )
    assert [entry.disk and entry.disk.volume_id for entry in entries] == [None, VOLUME, other, None, VOLUME]
    assert [entry.target for entry in entries] == ["sda", "vdb", "sdb", "vdc", "vdd"]
    assert entries[4].disk.source == BlockSource("network:nbd:e")


def test_credentials_beside_the_source_are_found():
    """Where definitions of older libvirt have them."""
    auth = "<auth username='u'><secret type='ceph' uuid='s'/></auth>"
    source = "<source protocol='rbd' name='p/i'><host name='m' port='1'/></source>"
    serial = f"<serial>{VOLUME}</serial>"
    (entry,) = domain_disks(domain(element("network", "disk", auth + source, "vda", "virtio", serial)))
    assert entry.disk.source == RbdSource(pool="p", image="i", hosts=(("m", 1),), user="u", secret_id="s")


def test_definitions_that_are_no_xml():
    with pytest.raises(HypervisorError):
        domain_disks("<domain>")


# --- device names ----------------------------------------------------------------------------------------------------


def test_device_names():
    """The next free one of the bus; a bus is full at its limit; some take disks only while the guest is off."""
    disk = Disk(volume_id=VOLUME, source=FileSource("/a"))
    letters = {f"vd{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"}
    assert pick_target(disk, set(), running=True) == "vda"
    assert pick_target(disk, {"vda", "vdc", "sda"}, running=True) == "vdb"
    assert pick_target(disk, letters, running=True) == "vdaa"
    assert pick_target(attrs.evolve(disk, bus=DiskBus.SCSI), letters, running=True) == "sda"
    assert pick_target(attrs.evolve(disk, target="vdx"), {"vda"}, running=True) == "vdx"
    ide = attrs.evolve(disk, bus=DiskBus.IDE)
    assert pick_target(ide, {"hda"}, running=False) == "hdb"
    with pytest.raises(LimitExceeded) as caught:
        pick_target(ide, {"hda", "hdb", "hdc", "hdd"}, running=False)
    assert (caught.value.limit, caught.value.used) == (4, 4)
    for wrong in (ide, attrs.evolve(disk, bus=DiskBus.SATA)):
        with pytest.raises(InvalidDisk):
            pick_target(wrong, set(), running=True)
