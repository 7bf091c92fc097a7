"""QEMU's own list of disks, beside what the definition says; and what else a host tells, read with care."""

from __future__ import annotations

import json
import uuid

import pytest

from cloudcore.disks import BlockSource, FileSource, IscsiSource, RbdSource
from cloudcore.errors import OrphanedDevice
from cloudcore.hypervisor import Timeouts, build_tree
from cloudcore.hypervisor.disks.guests import GuestState
from cloudcore.hypervisor.disks.memory_driver import MemoryDriver, MemoryGuest
from cloudcore.hypervisor.disks.monitor import OpenDisks, OpenNode, failure_text, opens, orphans, read_open
from cloudcore.hypervisor.disks.orphans import OrphanRepair
from cloudcore.hypervisor.disks.xml import domain_disks
from cloudcore.hypervisor.facts.documents import HostDocuments, read_documents
from cloudcore.hypervisor.libvirt.host_documents import _devices

VOLUME = "22222222-2222-4222-8222-222222222222"
RBD = json.dumps({"driver": "raw", "file": {"driver": "rbd", "pool": "p", "image": "i", "server": [{"host": "m"}]}})
LIVE = f"""<domain><devices><disk type='file' device='disk'><source file='/a' index='3'/><backingStore type='file'>
<source file='/b' index='1'/></backingStore><target dev='vda' bus='virtio'/><alias name='ua-{VOLUME}'/></disk>
</devices></domain>"""


def answer(value: object) -> str:
    return json.dumps({"return": value, "id": "libvirt-7"})


def test_devices_and_nodes_are_read():
    """Virtio disks are named by the path of what is inside them, others by their own id."""
    found = read_open(
        answer(
            [
                {
                    "qdev": f"/machine/peripheral/ua-{VOLUME}/virtio-backend",
                    "inserted": {"node-name": "libvirt-3-format"},
                },
                {"qdev": f"ua-{uuid.UUID(int=1)}", "inserted": {"node-name": "libvirt-4-format"}},
                {"qdev": "/machine/unattached/device[9]"},
                {"device": "floppy0"},
            ]
        ),
        answer([{"node-name": "libvirt-3-storage", "file": "/a"}, {"node-name": "#block12"}]),
    )
    assert found.devices == {f"ua-{VOLUME}": "libvirt-3-format", f"ua-{uuid.UUID(int=1)}": "libvirt-4-format"}
    assert [(node.name, node.index) for node in found.nodes] == [("libvirt-3-storage", 3), ("#block12", None)]
    refused = json.dumps({"error": {"class": "GenericError", "desc": "no"}})
    assert failure_text(refused) == "GenericError: no"
    assert read_open(refused, refused) == OpenDisks(devices={}, nodes=())


def test_what_the_definition_accounts_for_is_no_orphan():
    """Its devices by alias, its images and their backing files by number; names of others are none of ours."""
    other = f"ua-{uuid.UUID(int=1)}"
    nodes = [OpenNode(name=f"libvirt-{number}-storage", file=f"/{number}") for number in (1, 3, 4, 5)]
    nodes += [OpenNode(name=name, file="/x") for name in ("libvirt-pflash0-storage", "mine", "#block1")]
    has = OpenDisks(devices={f"ua-{VOLUME}": "libvirt-3-format", other: "libvirt-4-format"}, nodes=tuple(nodes))
    found = orphans(has, domain_disks(LIVE))
    assert found.devices == {other}
    assert [node.name for node in found.nodes] == ["libvirt-5-storage"]
    assert found.of(str(uuid.UUID(int=1)), None)
    assert found.of(str(uuid.UUID(int=2)), FileSource("/5"))
    assert not found.of(str(uuid.UUID(int=2)), FileSource("/4"))
    assert not orphans(OpenDisks(devices={f"ua-{VOLUME}": ""}, nodes=tuple(nodes[:2])), domain_disks(LIVE))


def test_a_device_that_goes_between_two_looks_leaves_its_images_as_orphans(monkeypatch):
    """A look trusts what two answers in a row say; it asks on as long as devices go."""
    guest, volumes = str(uuid.UUID(int=1)), [str(uuid.UUID(int=number)) for number in (3, 4)]
    nodes = tuple(OpenNode(name=f"libvirt-{number}-format", file=f"/{number}") for number in (3, 4))
    devices = {f"ua-{volume}": node.name for volume, node in zip(volumes, nodes, strict=True)}
    only = {f"ua-{volumes[1]}": nodes[1].name}
    answers = [OpenDisks(devices=each, nodes=nodes) for each in (devices, only, {}, {})]

    driver = MemoryDriver("cn1")
    driver.guests[guest] = MemoryGuest(state=GuestState.RUNNING, transient=False, slots=1)
    monkeypatch.setattr(driver, "settle", lambda _: answers.pop(0))
    found = OrphanRepair(driver, Timeouts()).look(guest)
    assert (found.devices, [node.name for node in found.nodes], answers) == (set(), [node.name for node in nodes], [])


@pytest.mark.parametrize("source", [None, FileSource("/ours")])
@pytest.mark.parametrize("open_for", [0, 1, 10**9])
def test_an_image_in_use_is_anybodys_where_the_source_is_unknown(monkeypatch, source, open_for):
    """Then it has to be closed before the volume counts as gone; with the source known it is none of ours."""
    guest, node, left = str(uuid.UUID(int=1)), OpenNode(name="libvirt-3-format", file="/three"), [open_for]
    driver = MemoryDriver("cn1")
    driver.guests[guest] = MemoryGuest(state=GuestState.RUNNING, transient=False, slots=1)
    monkeypatch.setattr(driver, "settle", lambda _: OpenDisks(nodes=(node,) if left[0] >= 0 else ()))

    def release(_, *, nodes):
        left[0] -= 1
        return left[0] < 0

    monkeypatch.setattr(driver, "release", release)
    repair = OrphanRepair(driver, Timeouts(paused=0.2, detach=5), sleep=lambda _: None)
    if source is None and open_for > 1:
        with pytest.raises(OrphanedDevice, match=r"/three.*restart the guest"):
            repair.remove(driver.view(guest), VOLUME, source)
    else:
        assert repair.remove(driver.view(guest), VOLUME, source)
        assert (left[0] < 0) is (source is None or open_for == 0)


@pytest.mark.parametrize(
    ("file", "source", "same"),
    [
        ("/a", FileSource("/a"), True),
        ("/dev/sdb", BlockSource("/dev/sdb"), True),
        ("/a", FileSource("/b"), False),
        ("/a", None, False),
        (f"/volumes/volume-{VOLUME}", None, True),
        (f"json:{RBD}", RbdSource(pool="p", image="i", hosts=(("m", 1),)), True),
        (f"json:{RBD}", RbdSource(pool="p", image="j", hosts=(("m", 1),)), False),
        ("/a", RbdSource(pool="p", image="i", hosts=(("m", 1),)), False),
        (
            'json:{"driver":"iscsi","target":"iqn.x","lun":1}',
            IscsiSource(host="h", port=3260, target="iqn.x", lun=1),
            True,
        ),
        (
            'json:{"driver":"iscsi","target":"iqn.x","lun":11}',
            IscsiSource(host="h", port=3260, target="iqn.x", lun=1),
            False,
        ),
    ],
)
def test_whose_image_it_is(file, source, same):
    assert opens(file, VOLUME, source) is same


# --- the host --------------------------------------------------------------------------------------------------------

CAPABILITIES = """<capabilities><host><cpu><arch>x86_64</arch></cpu><topology><cells num='1'><cell id='0'>
<memory unit='KiB'>4194304</memory><cpus num='1'><cpu id='0' socket_id='0' core_id='0' siblings='0'/></cpus>
</cell></cells></topology></host></capabilities>"""
TPM = """<domainCapabilities><domain>qemu</domain><arch>x86_64</arch><devices><tpm supported='{supported}'>
<enum name='model'><value>tpm-tis</value><value>tpm-crb</value></enum>
<enum name='backendModel'>{backends}</enum><enum name='backendVersion'><value>2.0</value></enum></tpm></devices>
</domainCapabilities>"""
EMULATED = {"COMPUTE_SECURITY_TPM_TIS", "COMPUTE_SECURITY_TPM_CRB", "COMPUTE_SECURITY_TPM_2_0"}


@pytest.mark.parametrize(
    ("supported", "backends", "traits"),
    [
        ("yes", ["passthrough", "emulator"], EMULATED),
        ("yes", ["emulator"], EMULATED),
        ("yes", ["emulator", "external"], EMULATED),
        ("yes", ["passthrough"], set()),
        ("yes", ["external"], set()),
        ("yes", [], set()),
        ("no", ["emulator"], set()),
    ],
)
def test_a_tpm_is_offered_where_it_can_be_emulated(supported, backends, traits):
    """A passed-through one is the host's own: no guest can be promised it."""
    listed = "".join(f"<value>{one}</value>" for one in backends)
    capabilities = TPM.format(supported=supported, backends=listed)
    facts = read_documents(HostDocuments(host_name="h", capabilities=CAPABILITIES, domain_capabilities=capabilities))
    assert {trait for trait in build_tree(facts).root.traits if "TPM" in trait} == traits


def test_mediated_devices_that_are_only_defined_are_not_counted():
    """What the GPU says is still available has room for them; an older libvirt knows none, nor how to ask."""
    import libvirt

    class Node:
        def __init__(self, new: bool) -> None:
            self.new = new

        def listAllDevices(self, flags: int) -> list[str]:
            if flags >> 30 and not self.new:
                error = libvirt.libvirtError("unsupported flags")
                error.err = (libvirt.VIR_ERR_INVALID_ARG, 0, "unsupported flags", 2, None, None, None, 0, 0)
                raise error
            return ["started"] if flags & libvirt.VIR_CONNECT_LIST_NODE_DEVICES_ACTIVE else ["started", "defined"]

    assert _devices(libvirt, Node(new=True)) == ["started"]
    assert _devices(libvirt, Node(new=False)) == ["started", "defined"]
