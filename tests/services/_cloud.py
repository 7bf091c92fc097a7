"""Handles on Ceph, Cinder, libvirt hosts and the guest's files."""

from __future__ import annotations

import functools
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.services._client import Handle, call, require

PROJECT = "0123456789abcdef0123456789abcdef"
"""The tenant of all test volumes. Cinder takes only what looks like an id."""


class Pausable(Handle):
    """A server that can be stopped in its tracks, so that calls hang."""

    def pause(self) -> None:
        """SIGSTOP: it accepts connections and answers none."""
        call(self.name, "pause")

    def resume(self) -> None:
        """SIGCONT."""
        call(self.name, "resume")


class CephCluster(Pausable):
    """The run's Ceph. `pause` stops the OSD: reads and writes hang."""

    @property
    def conf(self) -> str:
        """Path of ceph.conf."""
        return str(self.info["conf"])

    @property
    def keyring(self) -> str:
        """Path of the keyring."""
        return str(self.info["keyring"])

    @property
    def user(self) -> str:
        """Ceph's user for volumes, without the "client.": cinder."""
        return str(self.info["user"])

    @property
    def key(self) -> str:
        """Its key, base64; what libvirt's secret wants is the decoded value."""
        return str(self.info["key"])

    @property
    def pool(self) -> str:
        """The pool that holds the volumes."""
        return str(self.info["pool"])

    @property
    def port(self) -> int:
        """The monitor's, old protocol."""
        return int(self.info["port"])

    def rbd(self, *words: str) -> str:
        """`rbd WORDS` in the pool; `rbd("status", "volume-ID")` lists who has the image open."""
        return str(call(self.name, "rbd", words=words))

    def command(self, *words: str) -> str:
        """`ceph WORDS`."""
        return str(call(self.name, "ceph", words=words))


class CinderService(Pausable):
    """A real Cinder, API and scheduler and one volume service."""

    def __init__(self, name: str, settings: Mapping[str, object]) -> None:
        self._settings = dict(settings)
        super().__init__(name)

    def start(self) -> None:
        """Start it, also after `kill` or `stop`; returns when scheduler and volume service are up."""
        self.info = call(self.name, "start", settings=self._settings)

    def verify(self) -> None:
        """ServiceError if it has ended although nobody told it to: it says how, and the last that it wrote."""
        call(self.name, "verify")

    @property
    def port(self) -> int:
        """The API's."""
        return int(self.info["port"])

    @property
    def endpoint(self) -> str:
        """The API's address, without project."""
        return self.url()

    def url(self, port: int | None = None) -> str:
        """The API's address, on another port if a proxy stands between."""
        return f"http://127.0.0.1:{port or self.port}/v3"

    @property
    def secret_uuid(self) -> str:
        """Of the libvirt secret that RBD volumes name; the hosts do not have it until someone defines it there."""
        return str(self.info["secret"])

    def add_image(self, content: bytes) -> str:
        """Give its image service a raw image of these bytes; its id."""
        image_id = str(uuid.uuid4())
        (Path(str(self.info["folder"])) / "images" / image_id).write_bytes(content)
        return image_id

    def session(self, *, service: bool = True, port: int | None = None) -> Any:
        """A keystoneauth session as an administrator of `PROJECT`; `service` adds the role of a service token.

        Without that role Cinder asks Nova, of which there is none, before it deletes an attachment in use.
        """
        from cinderclient.contrib.noauth import CinderNoAuthPlugin
        from keystoneauth1.session import Session

        class Plugin(CinderNoAuthPlugin):
            def get_headers(self, session: Any, **more: Any) -> dict[str, str]:
                headers: dict[str, str] = super().get_headers(session, **more)
                return headers | {"X-Service-Roles": "service"} if service else headers

        return Session(auth=Plugin("tester", PROJECT, endpoint=self.url(port)))

    def client(self, version: str = "3.71", *, service: bool = True, port: int | None = None) -> Any:
        """A python-cinderclient client."""
        from cinderclient import client

        return client.Client(version, session=self.session(service=service, port=port))

    @property
    def passphrase(self) -> bytes:
        """Of every encrypted volume: Cinder writes the key's bytes in hexadecimal digits."""
        return str(self.info["fixed_key"]).encode()

    def create_volume(
        self, *, size: int = 1, multiattach: bool = False, encrypted: bool = False, name: str | None = None
    ) -> str:
        """Create a volume, wait until it is available; its id."""
        client = self.client()
        kind = self._encrypted_type() if encrypted else self._volume_type(multiattach=multiattach)
        volume = client.volumes.create(size, name=name, volume_type=kind)
        deadline = time.monotonic() + 180
        while (now := client.volumes.get(volume.id)).status != "available":
            assert now.status == "creating", f"volume {volume.id} is {now.status}"
            assert time.monotonic() < deadline, f"volume {volume.id} is still {now.status}"
            time.sleep(0.05)
        return str(volume.id)

    def _volume_type(self, *, multiattach: bool) -> str:
        """Multi-attach is a property of the type; two workers may create it at once."""
        from cinderclient.exceptions import ClientException

        name = "shared" if multiattach else "exclusive"
        client = self.client()
        if all(kind.name != name for kind in client.volume_types.list()):
            try:
                client.volume_types.create(name)
            except ClientException as refusal:
                if refusal.code != 409:
                    raise
        kind = client.volume_types.find(name=name)
        if multiattach and "multiattach" not in kind.extra_specs:  # the other worker may be between its two calls
            kind.set_keys({"multiattach": "<is> True"})
        return name

    def _encrypted_type(self) -> str:
        """LUKS, opened by the compute host."""
        client, name = self.client(), "encrypted"
        if all(kind.name != name for kind in client.volume_types.list()):
            kind = client.volume_types.create(name)
            specs = {"provider": "luks", "cipher": "aes-xts-plain64", "key_size": 256, "control_location": "front-end"}
            client.volume_encryption_types.create(kind, specs)
        return name

    def stop_volume_service(self) -> None:
        """The volume service ends; API and scheduler live on: calls that need a back end time out."""
        call(self.name, "tell", order={"order": "stop-volume"})

    def start_volume_service(self) -> None:
        """Start it again."""
        call(self.name, "tell", order={"order": "start-volume"})

    def fault(
        self,
        method: str,
        *,
        error: str | None = None,
        delay: float | None = 0.0,
        when: str = "before",
        times: int | None = 1,
    ) -> None:
        """Let a method of the volume driver wait, then fail.

        Args:
            method: initialize_connection, terminate_connection, create_export, remove_export, create_volume,
                delete_volume, extend_volume.
            error: text of the failure; None lets it succeed after the delay.
            delay: seconds; more than `rpc_response_timeout` makes the API answer 500 while the work goes on. None
                waits until `heal`.
            when: "before" the real work or "after" it (done, but reported as failed).
            times: how often; None until `heal`.
        """
        order = {"order": "fault", "method": method, "error": error, "delay": delay, "when": when, "times": times}
        call(self.name, "tell", order=order)

    def wait_fault(self, method: str, *, count: int = 1, seconds: float = 60.0) -> None:
        """Wait until calls of this method have met its fault, `count` times since the fault was set."""
        deadline = time.monotonic() + seconds
        while (call(self.name, "tell", order={"order": "met"}) or {}).get(method, 0) < count:
            assert time.monotonic() < deadline, f"no call of {method} has met its fault in {seconds:g} s"
            time.sleep(0.02)

    def heal(self) -> None:
        """Forget all faults; what waits for `heal` goes on."""
        call(self.name, "tell", order={"order": "heal"})

    def driver_calls(self) -> list[tuple[str, str | None]]:
        """(method, volume id) of the driver's calls since this was asked last."""
        return [(method, volume) for method, volume in call(self.name, "tell", order={"order": "calls"}) or []]


class LibvirtHost(Pausable):
    """A private libvirtd with QEMU. Guests are processes of their own: they outlive `kill` and are found again."""

    @property
    def uri(self) -> str:
        """For libvirt.open."""
        return str(self.info["uri"])

    @property
    def folder(self) -> str:
        """A folder of the host that QEMU can write to: for serial sockets."""
        return str(self.info["folder"])

    @property
    def images(self) -> str:
        """A folder for disk images, writable for the tests and QEMU; give the files mode 666."""
        return str(self.info["images"])

    @property
    def host_uuid(self) -> str:
        """What libvirt says in its capabilities."""
        return str(self.info["host_uuid"])

    @property
    def migration_port(self) -> int:
        """A free port for `tcp://127.0.0.1:PORT` as destination of a migration to this host."""
        return int(self.info["migration_port"])


class GuestImage(Handle):
    """Kernel and initrd of a guest that boots in a few seconds with 128 MiB; talk to it with `GuestConsole`.

    Its kernel command line must have `console=ttyS0`; the domain is of type `qemu`, with a serial port of type unix.
    """

    @property
    def kernel(self) -> str:
        """Path, readable for QEMU."""
        return str(self.info["kernel"])

    @property
    def initrd(self) -> str:
        """Path, readable for QEMU."""
        return str(self.info["initrd"])


@functools.cache
def ceph(*, variant: str = "") -> CephCluster:
    """The run's Ceph: monitor, OSD (in memory), manager; 8 s to start."""
    require("ceph")
    return CephCluster(":".join(filter(None, ["ceph", variant])))


_cinders: dict[str, CinderService] = {}


def cinder(backend: str = "file", *, variant: str = "", **settings: object) -> CinderService:
    """A real Cinder with a driver of files (4 s to start), or with `"rbd"` on the run's Ceph.

    `settings` go into section DEFAULT of cinder.conf (`rpc_response_timeout=3`), those named `section/option` into that
    section; they ask for a variant of your own.
    """
    require("cinder", *(["ceph", "rbd"] if backend == "rbd" else []))
    if settings and not variant:
        raise ValueError("settings would change the Cinder of other tests: give a variant")
    name = ":".join(filter(None, [f"cinder-{backend}", variant]))
    if name not in _cinders:
        _cinders[name] = CinderService(name, settings)
    return _cinders[name]


@functools.cache
def libvirt_hosts(count: int = 2, *, variant: str = "") -> tuple[LibvirtHost, ...]:
    """Private libvirt daemons with QEMU, one for each pretended compute host; 0.3 s each."""
    require("qemu")
    return tuple(LibvirtHost(f"host:{variant}{number}") for number in range(count))


@functools.cache
def guest() -> GuestImage:
    """Kernel and initrd of the test guest."""
    require("guest")
    return GuestImage("guest")
