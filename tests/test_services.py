"""The servers of the tests do what `tests.services` promises, and nothing of them outlives a run."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from pathlib import Path

import pytest

from tests import services
from tests.services._host import REPOSITORY, Daemon, Ports, ServiceError, state_of


def test_ports_of_two_copies_differ():
    """A block that one copy holds is not given to another."""
    ours, theirs = Ports(), Ports()
    assert not {p for _ in range(20) for p in ours.block()} & {p for _ in range(20) for p in theirs.block()}


@pytest.mark.parametrize("start", [services.postgresql, services.mariadb])
def test_what_was_committed_survives_kill(start):
    """kill -9, recovery, and the row is there."""
    server = start(variant="killed")
    url = server.create_database()
    name = url.rsplit("/", 1)[1].split("?")[0]
    server.kill()
    server.start()
    names = server.execute("SELECT datname FROM pg_database" if "psycopg" in url else "SHOW DATABASES")
    assert (name,) in names
    server.drop_database(url)


DOMAIN = """
<domain type='qemu'><name>{name}</name><memory unit='MiB'>128</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type><kernel>{kernel}</kernel><initrd>{initrd}</initrd>
<cmdline>console=ttyS0 quiet panic=-1</cmdline></os><features><acpi/></features>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
<controller type='pci' index='0' model='pcie-root'/><controller type='pci' model='pcie-root-port'/>
<controller type='usb' model='none'/><memballoon model='none'/>
<serial type='unix'><source mode='bind' path='{serial}'/><target port='0'/></serial></devices></domain>
"""


@pytest.mark.services
def test_guest_lives_through_the_death_of_its_libvirtd():
    """A guest boots, obeys, and is found again by a restarted daemon."""
    services.require("libvirt")
    import libvirt

    (host,) = services.libvirt_hosts(1, variant="killed")
    image = services.guest()
    name = f"guest-{uuid.uuid4().hex[:8]}"
    serial = f"{host.folder}/{name}.serial"
    connection = libvirt.open(host.uri)
    connection.createXML(DOMAIN.format(name=name, kernel=image.kernel, initrd=image.initrd, serial=serial))
    with services.GuestConsole(serial) as console:
        assert console.run("echo $((6 * 7))") == "42"
        host.kill()
        host.start()
        assert console.try_run("false") == (1, "")
    with contextlib.suppress(libvirt.libvirtError):
        connection.close()
    connection = libvirt.open(host.uri)
    domain = connection.lookupByName(name)
    assert domain.isActive()
    with contextlib.suppress(libvirt.libvirtError):  # "not found" when its death is noticed before destroy's own look
        domain.destroy()
    connection.close()


CONNECTOR = {"host": "host-a", "ip": "127.0.0.1", "initiator": "iqn.2026-01.org.example:host-a"}


def test_a_daemon_that_died_says_how(tmp_path):
    """One that was told to end is nobody's worry."""
    died = Daemon("crasher", ["sh", "-c", "echo last words; kill -ABRT $$"], log=tmp_path / "out")
    died.verify()
    died.start(lambda: not died.running())
    with pytest.raises(ServiceError, match="crasher was ended by SIGABRT:\nlast words"):
        died.verify()
    told = Daemon("sleeper", ["sleep", "1000"], log=tmp_path / "sleeper")
    told.start(lambda: True)
    told.stop(signal.SIGKILL)
    told.verify()


@pytest.mark.services
def test_cinder_faults_and_kill():
    """The driver fails on order; the reservation outlives the process."""
    from cinderclient import exceptions

    service = services.cinder(variant="faulty")
    volume = service.create_volume()
    client = service.client()
    instance = str(uuid.uuid4())
    attachment = client.attachments.create(volume, None, instance)["id"]
    service.fault("initialize_connection", error="the array is on fire")
    with pytest.raises(exceptions.ClientException):
        client.attachments.update(attachment, CONNECTOR)
    service.wait_fault("initialize_connection")
    assert ("initialize_connection", volume) in service.driver_calls()
    service.kill()
    service.start()
    assert client.attachments.show(attachment).status == "reserved"
    client.attachments.update(attachment, CONNECTOR)
    client.attachments.complete(attachment)
    assert client.volumes.get(volume).status == "in-use"
    client.attachments.delete(attachment)
    assert client.volumes.get(volume).status == "available"


@pytest.mark.services
def test_cinder_without_its_volume_service():
    """API and scheduler answer; what needs a back end is carried out when the service is back."""
    service = services.cinder(variant="headless", rpc_response_timeout=2)
    volume = service.create_volume()
    service.stop_volume_service()
    client = service.client()
    client.volumes.delete(volume)
    assert client.volumes.get(volume).status == "deleting"
    service.start_volume_service()
    deadline = time.monotonic() + 60
    while client.volumes.list() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert client.volumes.list() == []


@pytest.mark.services
@pytest.mark.xdist_group("ceph")
def test_cinder_on_ceph():
    """A volume of the production driver is an image in the pool."""
    storage, service = services.ceph(), services.cinder("rbd")
    volume = service.create_volume(multiattach=True)
    assert f"volume-{volume}" in storage.rbd("ls").split()
    client = service.client()
    attachment = client.attachments.create(volume, CONNECTOR, str(uuid.uuid4()))
    info = attachment["connection_info"]
    assert (info["driver_volume_type"], info["secret_uuid"]) == ("rbd", service.secret_uuid)
    client.attachments.delete(attachment["id"])


# ------------------------------------------------------------------------------------------------- nothing is left over

SCRIPT = textwrap.dedent("""
    import os, sys, time
    from tests import services
    from tests.services import _client
    _client.claim_run()
    server = {server}
    print(os.environ["CLOUDCORE_TEST_RUN"], server.pid, flush=True)
    {end}
""")


def _processes_of(folder):
    """Processes whose command line names the folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if folder.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
    return found


def _run_of_its_own(server, end):
    """Start another run, as a second copy of the tests would; (process, run folder, pid of its server)."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("CLOUDCORE_TEST_")}
    command = [sys.executable, "-c", SCRIPT.format(server=server, end=end)]
    process = subprocess.Popen(command, cwd=REPOSITORY, env=env, stdout=subprocess.PIPE, text=True)
    folder, pid = process.stdout.readline().split()
    return process, folder, int(pid)


def _wait_until_nothing_is_left(folder, pid):
    deadline = time.monotonic() + 60
    while (Path(folder).exists() or _processes_of(folder) or state_of(pid)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _processes_of(folder)
    assert not Path(folder).exists()


ONE = {
    "postgresql": "services.postgresql()",
    "mariadb": "services.mariadb()",
    "qemu": "services.libvirt_hosts(1)[0]",
    "cinder": "services.cinder()",
}


@pytest.mark.parametrize(("kind", "server"), ONE.items(), ids=ONE)
def test_killed_run_leaves_nothing(kind, server):
    """kill -9 of the test run: its servers end, its scratch folder goes."""
    services.require(kind)
    process, folder, pid = _run_of_its_own(server, "time.sleep(600)")
    process.kill()
    process.communicate()
    _wait_until_nothing_is_left(folder, pid)


GUEST = """
import libvirt
from tests.test_services import DOMAIN
image, serial = services.guest(), server.folder + "/guest.serial"
connection = libvirt.open(server.uri)
connection.createXML(DOMAIN.format(name="guest", kernel=image.kernel, initrd=image.initrd, serial=serial))
print("booting", flush=True)
time.sleep(600)
"""


@pytest.mark.services
@pytest.mark.parametrize("victim", ["run", "supervisor"])
def test_guests_end_with_the_run(victim):
    """QEMU detaches itself from libvirtd; it is found all the same, also when the supervisor that works is killed."""
    services.require("qemu", "guest")
    process, folder, pid = _run_of_its_own("services.libvirt_hosts(1)[0]", GUEST)
    assert process.stdout.readline() == "booting\n"
    assert any(b"qemu-system" in Path(f"/proc/{pid}/cmdline").read_bytes() for pid in _processes_of(folder))
    if victim == "supervisor":
        os.kill(state_of(pid)[1], signal.SIGKILL)
        _wait_until_nothing_is_left(folder, pid)
    process.kill()
    process.communicate()
    _wait_until_nothing_is_left(folder, pid)


def test_a_run_that_ends_leaves_nothing():
    """The ordinary end."""
    services.require("postgresql")
    process, folder, pid = _run_of_its_own("services.postgresql()", "_client.end_run()")
    assert process.wait(60) == 0
    process.communicate()
    assert not Path(folder).exists()
    assert state_of(pid) is None
