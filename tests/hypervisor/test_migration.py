"""A guest moves between two libvirt hosts with its multi-attach volume; ledger, attachments and libvirt agree."""

from __future__ import annotations

import importlib.util
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudcore import AllocationLedger, PlacementTree, create_schema
from cloudcore.attach import State
from cloudcore.disks import Disk, FileSource, RbdSource
from cloudcore.errors import CloudcoreError, DeviceNotFound, InvalidDisk
from cloudcore.hypervisor import HostPolicy, sync
from cloudcore.hypervisor.disks.migration_xml import destination_xml
from cloudcore.hypervisor.disks.xml import domain_disks
from tests.hypervisor.cloud import Cloud, open_cloud, token

EXAMPLE = Path(__file__).parents[2] / "examples" / "live_migration.py"
QUERY = "resources=VCPU:1,MEMORY_MB:128&in_tree="


def example():
    """The example as a module."""
    spec = importlib.util.spec_from_file_location("live_migration", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_runs(capsys):
    """In memory: the volume is on both hosts only while the guest moves, and so are the resources."""
    example().main()
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    one, both, other = "['cn1']", "['cn1', 'cn2']", "['cn2']"
    assert [(stage, text.split("on ")[1]) for stage, text in lines] == [
        ("first", one), ("before", both), ("during", both), ("after", other),
    ]  # fmt: skip
    used = [text.split(", volume")[0].removeprefix("VCPU in use ") for _, text in lines]
    assert used == ["{'cn1': 2, 'cn2': 0}", *["{'cn1': 2, 'cn2': 2}"] * 2, "{'cn1': 0, 'cn2': 2}"]


# --- the definition at the destination -------------------------------------------------------------------------------

VOLUME = "7c5c3b2a-1111-4222-8333-444455556666"
GUEST = f"""<domain type='kvm'><name>g</name><devices>
<disk type='file' device='cdrom'><target dev='sda' bus='sata'/></disk>
<disk type='file' device='disk'><driver name='qemu' type='raw' cache='none'/><source file='/old.img'/>
<target dev='vdc' bus='virtio'/><shareable/><serial>{VOLUME}</serial><alias name='{{alias}}'/>
<address type='pci' domain='0x0000' bus='0x07' slot='0x00' function='0x0'/></disk></devices></domain>"""


@pytest.mark.parametrize("alias", [f"ua-{VOLUME}", "virtio-disk2"])
def test_only_the_source_changes(alias):
    """Found by alias, else by serial; device name and address stay, since a changed one can be fatal to the guest."""
    new = RbdSource(pool="p", image="i", hosts=(("m", 1),), user="u", secret_id=VOLUME)
    text = destination_xml(GUEST.format(alias=alias), [Disk(volume_id=VOLUME.upper(), source=new, target="vdz")])
    disk = domain_disks(text)[1]
    assert disk.disk.source == new
    assert (disk.target, disk.disk.shareable, disk.alias) == ("vdc", True, alias)
    assert 'bus="0x07"' in text
    assert 'type="network"' in text


def test_what_others_set_stays_beside_a_new_source():
    """Limits and encryption: without the second the guest would get the bytes as they are stored."""
    secret = f"<encryption format='luks'><secret type='passphrase' uuid='{VOLUME}'/></encryption>"
    here = GUEST.format(alias="x").replace("<source file='/old.img'/>", f"<source file='/old.img'>{secret}</source>")
    here = here.replace("<shareable/>", "<shareable/><iotune><read_iops_sec>7</read_iops_sec></iotune>")
    disk = domain_disks(destination_xml(here, [Disk(volume_id=VOLUME, source=FileSource("/new.img"))]))[1].disk
    assert (disk.source, disk.encryption.secret_id) == (FileSource("/new.img"), VOLUME)
    assert disk.limits.read_iops_sec == 7


def test_disks_that_the_guest_has_not_are_refused():
    disk = Disk(volume_id=str(uuid.uuid4()), source=FileSource("/a"))
    with pytest.raises(DeviceNotFound):
        destination_xml(GUEST.format(alias="x"), [disk])
    known = Disk(volume_id=VOLUME, source=FileSource("/a"))
    with pytest.raises(InvalidDisk):
        destination_xml(GUEST.format(alias="x"), [known, known])


# --- two hosts, QEMU, Cinder, Ceph -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    with open_cloud(f"sqlite:///{tmp_path_factory.mktemp('journal') / 'cloud.db'}") as cloud:
        yield cloud


@pytest.mark.xdist_group("guests")
def test_live_migration_with_a_shared_volume(cloud):
    """Right before, during and after; the guest runs on, and reads and writes the volume at the destination."""
    create_schema(cloud.url)
    source, destination = cloud.hosts.values()
    instance = source.guests.boot()
    destination.guests.adopt(instance)
    seen = {}
    with PlacementTree.open(cloud.url) as tree, AllocationLedger(cloud.url) as ledger, cloud.manager() as manager:
        for host in (source, destination):
            sync(tree, host.hypervisor.facts(), HostPolicy(name=host.name, disk_gb=10))
        volume_id = cloud.volume(multiattach=True)
        first, second = (next(iter(tree.candidates(QUERY + tree[name].uuid))) for name in cloud.hosts)
        ledger.claim(instance, first, project_id="p", user_id="u")
        manager.attach(volume_id, instance, host=source.name)
        console = source.guests.console(instance)
        disk, text = console.wait_disk(volume_id), token()
        console.write(disk, 5, text)
        console.run("echo before > /tmp/here")
        source.guests.drop_console(instance)

        def look(stage: str) -> None:
            tree.refresh()
            used = [sum(tree.usage(cell).get("VCPU", 0) for cell in tree.subtree(name)) for name in cloud.hosts]
            legs = sorted(leg.host for leg in manager.attachments(volume_id=volume_id))
            there = [host.hypervisor.disk_state(instance, volume_id).live is not None for host in cloud.hosts.values()]
            seen[stage] = used, legs, there
            ledger.check()
            manager.check()

        def move_guest(disks) -> None:
            assert [one.volume_id for one in disks] == [volume_id]
            source.hypervisor.migrate(
                instance,
                destination.hypervisor,
                uri=f"tcp://127.0.0.1:{destination.server.migration_port}",
                listen_address="127.0.0.1",
                disks=disks,
                edit=lambda xml: xml.replace(source.server.folder, destination.server.folder),
                seconds=120,
            )
            assert source.hypervisor.migrate(instance, destination.hypervisor) is None  # a repeat changes nothing

        example().live_migrate(
            instance, destination.name, second, ledger=ledger, manager=manager, move_guest=move_guest, look=look
        )
        both, there = sorted(cloud.hosts), [[True, False], [False, True]]
        assert seen == {
            "before": ([1, 1], both, there[0]),
            "during": ([1, 1], both, there[1]),
            "after": ([0, 1], [destination.name], there[1]),
        }
        assert ledger.allocations(instance) == {p: dict(c) for p, c in second.allocations.items()}
        state = destination.hypervisor.disk_state(instance, volume_id)
        assert state.live is not None
        assert state.live.shareable
        assert state.live == state.persistent
        console = destination.guests.console(instance, booting=False)
        assert console.run("cat /tmp/here") == "before"  # it is the same guest, still running
        assert console.read(disk, 5) == text
        again = token()
        console.write(disk, 6, again)
        assert console.read(disk, 6) == again
        assert cloud.watchers(volume_id, awaited=1) == 1
        (leg,) = manager.attachments(volume_id=volume_id)
        assert manager.detach(leg.id).state is State.ABSENT
        ledger.release(instance)
    assert cloud.status(volume_id) == "available"


@pytest.mark.xdist_group("guests")
def test_a_migration_that_fails_leaves_everything_as_it_was(cloud):
    """libvirt refuses; the guest runs on at the source, the destination holds nothing and has nothing."""
    create_schema(cloud.url)
    source, destination = cloud.hosts.values()
    instance = source.guests.define()
    source.guests.domain(instance).create()
    with PlacementTree.open(cloud.url) as tree, AllocationLedger(cloud.url) as ledger, cloud.manager() as manager:
        for host in (source, destination):
            sync(tree, host.hypervisor.facts(), HostPolicy(name=host.name, disk_gb=10))
        volume_id = cloud.volume(multiattach=True)
        first, second = (next(iter(tree.candidates(QUERY + tree[name].uuid))) for name in cloud.hosts)
        ledger.claim(instance, first, project_id="p", user_id="u")
        manager.attach(volume_id, instance, host=source.name)
        with pytest.raises(CloudcoreError):
            example().live_migrate(
                instance,
                destination.name,
                second,
                ledger=ledger,
                manager=manager,
                move_guest=lambda disks: source.hypervisor.migrate(
                    instance, destination.hypervisor, uri="tcp://127.0.0.1:1", disks=disks
                ),
            )
        assert ledger.allocations(instance) == {p: dict(c) for p, c in first.allocations.items()}
        assert [leg.host for leg in manager.attachments(volume_id=volume_id)] == [source.name]
        assert source.hypervisor.disk_state(instance, volume_id).live is not None
        assert not destination.hypervisor.disk_state(instance, volume_id).present
        ledger.check()
        manager.check()
        source.guests.domain(instance).destroy()
        for leg in manager.attachments(volume_id=volume_id):
            manager.detach(leg.id)
        ledger.release(instance)
    assert cloud.status(volume_id) == "available"
