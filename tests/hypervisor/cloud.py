"""Two compute hosts with guests, over one real Cinder on one real Ceph."""

from __future__ import annotations

import base64
import contextlib
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import attrs

from cloudcore.attach import AttachmentManager, EmbeddedVolumes
from cloudcore.attach.volumes.cinder import CinderVolumes
from cloudcore.hypervisor import LibvirtHypervisor, Timeouts
from cloudcore.schema import create_schema
from tests import services
from tests.hypervisor.domains import Guests

HOSTS = ("host-a", "host-b")


@attrs.define
class Compute:
    """One host: its daemon, the adapter over it, and the guests that the test made there."""

    name: str
    server: services.LibvirtHost
    hypervisor: LibvirtHypervisor
    guests: Guests


@attrs.define
class Cloud:
    """Everything that the end-to-end tests use."""

    cinder: services.CinderService
    ceph: services.CephCluster
    volumes: CinderVolumes
    hosts: dict[str, Compute]
    url: str

    def manager(self) -> AttachmentManager:
        """A manager over all hosts, as a process that starts now would open it."""
        return AttachmentManager(self.url, self.volumes, [host.hypervisor for host in self.hosts.values()])

    def volume(self, *, multiattach: bool = False) -> str:
        """A new volume of 1 GiB."""
        return self.cinder.create_volume(multiattach=multiattach)

    def status(self, volume_id: str) -> str:
        """What Cinder says of it."""
        client = self.cinder.client()
        with contextlib.closing(client.client.session.session):  # a circle that would hold its socket until collected
            return client.volumes.get(volume_id).status

    def watchers(self, volume_id: str, *, awaited: int) -> int:
        """How many have the image open, as Ceph counts them: looked at until it is *awaited*, for ten seconds."""
        deadline = time.monotonic() + 10
        while (count := self.ceph.rbd("status", f"volume-{volume_id}").count("watcher=")) != awaited:
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
        return count


@contextlib.contextmanager
def open_cloud(url: str, *, variant: str = "", count: int = 2) -> Iterator[Cloud]:
    """The services of the run, with *count* hosts; libvirt daemons of its own for a *variant*."""
    services.require("qemu", "guest", "ceph", "cinder", "rbd")
    create_schema(url, areas=["attach"])
    storage, cinder = services.ceph(), services.cinder("rbd")
    with contextlib.ExitStack() as stack:
        hosts = {}
        for name, server in zip(HOSTS, services.libvirt_hosts(count, variant=variant), strict=False):
            hypervisor = stack.enter_context(
                LibvirtHypervisor(server.uri, host=name, timeouts=Timeouts(detach=15, connect=20))
            )
            key = base64.b64decode(storage.key)
            hypervisor.define_secret(cinder.secret_uuid, kind="ceph", name=f"client.{storage.user}", value=key)
            hosts[name] = Compute(name, server, hypervisor, stack.enter_context(Guests(server)))
        volumes = stack.enter_context(CinderVolumes(cinder.session()))
        yield Cloud(cinder, storage, volumes, hosts, url)
        for host in hosts.values():
            host.hypervisor.check()


@attrs.define
class EmbeddedCloud:
    """One host, over the embedded volume service with files: what the tests of one volume use of a `Cloud`."""

    volumes: EmbeddedVolumes
    hosts: dict[str, Compute]
    url: str

    def manager(self) -> AttachmentManager:
        """A manager over the host, as a process that starts now would open it."""
        return AttachmentManager(self.url, self.volumes, [host.hypervisor for host in self.hosts.values()])

    def volume(self) -> str:
        """A new volume of 4 MiB, whose file QEMU may write."""
        return self._writable(self.volumes.create_volume(4 << 20).id)

    def migrate(self, volume_id: str) -> str:
        """A new volume that is to take the place of *volume_id*."""
        return self._writable(self.volumes.begin_migration(volume_id).id)

    def _writable(self, volume_id: str) -> str:
        for path in Path(self.hosts[HOSTS[0]].server.images, "embedded").iterdir():
            path.chmod(0o666)
        return volume_id

    def status(self, volume_id: str) -> str:
        """What the service says of it."""
        return self.volumes.volume(volume_id).status


@contextlib.contextmanager
def open_embedded_cloud(url: str, *, variant: str) -> Iterator[EmbeddedCloud]:
    """A libvirt daemon of its own for the *variant*, and volumes that are files."""
    services.require("qemu", "guest")
    create_schema(url, areas=["attach"])
    (server,) = services.libvirt_hosts(1, variant=variant)
    name = HOSTS[0]
    with (
        LibvirtHypervisor(server.uri, host=name) as hypervisor,
        EmbeddedVolumes(url, directory=Path(server.images, "embedded")) as volumes,
        Guests(server) as guests,
    ):
        yield EmbeddedCloud(volumes, {name: Compute(name, server, hypervisor, guests)}, url)
        hypervisor.check()


def token() -> str:
    """Bytes that nobody wrote before."""
    return uuid.uuid4().hex
