"""Guests for the tests, on the private libvirt hosts: defined, booted, talked to, and cleared away."""

from __future__ import annotations

import contextlib
import os
import signal
import uuid
from pathlib import Path
from typing import Self

from cloudcore.disks import FileSource
from tests import services

PREFIX = f"t{os.getpid()}"


def open_libvirt(uri: str):
    """A libvirt connection of the test's own, beside the adapter's."""
    import libvirt

    libvirt.registerErrorHandler(lambda *_: None, None)
    return libvirt.open(uri)


def domain_xml(
    name: str,
    instance_id: str,
    serial: str,
    *,
    image: services.GuestImage | None,
    machine: str = "q35",
    ports: int = 6,
    memory: int = 128,
    acpi_hotplug: bool = True,
    more: str = "",
) -> str:
    """A guest of type qemu: with the default type guests never boot where KVM is only half there.

    On q35 every disk that is plugged in needs a root port of its own, declared beforehand. Without *image* there is
    nothing to boot, so nobody in the guest ever answers. Without *acpi_hotplug* it has PCI Express's own, in which a
    slot takes seconds for each change and refuses others meanwhile: what every aarch64 guest has. *more* devices as
    XML.
    """
    boot, roots, native = "", "", ""
    if not acpi_hotplug:
        native = (
            "<qemu:commandline xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><qemu:arg value='-global'/>"
            "<qemu:arg value='ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off'/></qemu:commandline>"
        )
    if image is not None:
        boot = (
            f"<kernel>{image.kernel}</kernel><initrd>{image.initrd}</initrd>"
            "<cmdline>console=ttyS0 quiet panic=-1</cmdline>"
        )
    if machine == "q35":
        roots = "<controller type='pci' model='pcie-root'/>" + "<controller type='pci' model='pcie-root-port'/>" * ports
    return f"""<domain type='qemu'>
  <name>{name}</name><uuid>{instance_id}</uuid>
  <memory unit='MiB'>{memory}</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='{machine}'>hvm</type>{boot}</os>
  <features><acpi/></features>
  <on_poweroff>destroy</on_poweroff><on_crash>destroy</on_crash>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    {roots}{more}
    <controller type='usb' model='none'/><memballoon model='none'/>
    <serial type='unix'><source mode='bind' path='{serial}'/><target port='0'/></serial>
  </devices>
  {native}
</domain>"""


class Guests:
    """The guests of one test on one host. A context manager: at the end they are destroyed and undefined."""

    def __init__(self, host: services.LibvirtHost) -> None:
        self.host = host
        self.connection = open_libvirt(host.uri)
        self._made: dict[str, str] = {}
        self._consoles: dict[str, services.GuestConsole] = {}
        self._booting: set[str] = set()

    def define(self, *, image: services.GuestImage | None = None, **options: object) -> str:
        """A guest that is off; its instance id. Options are those of `domain_xml`."""
        instance_id = str(uuid.uuid4())
        name = f"{PREFIX}-{instance_id[:8]}"
        self._made[instance_id] = name
        self.connection.defineXML(domain_xml(name, instance_id, self.serial(instance_id), image=image, **options))
        return instance_id

    def serial(self, instance_id: str) -> str:
        """Path of the serial port's socket."""
        return f"{self.host.folder}/run/{PREFIX}-{instance_id[:8]}.serial"

    def adopt(self, instance_id: str) -> None:
        """Clear away a guest that came by migration, too."""
        self._made[instance_id] = ""

    def domain(self, instance_id: str):
        """libvirt's object of it."""
        return self.connection.lookupByUUIDString(instance_id)

    def boot(self, **options: object) -> str:
        """A guest that has booted and answers; its instance id."""
        instance_id = self.launch(**options)
        self.console(instance_id)
        return instance_id

    def launch(self, **options: object) -> str:
        """A guest that is booting. It is listened to from now on; `console` waits until it is up."""
        instance_id = self.define(image=services.guest(), **options)
        self.domain(instance_id).create()
        self._consoles[instance_id] = services.GuestConsole(self.serial(instance_id), booting=False)
        self._booting.add(instance_id)
        return instance_id

    def console(self, instance_id: str, *, booting: bool = True) -> services.GuestConsole:
        """Its console; the first call waits until it is up."""
        if instance_id not in self._consoles:
            self._consoles[instance_id] = services.GuestConsole(self.serial(instance_id), booting=booting)
        elif instance_id in self._booting:
            self._consoles[instance_id].wait_until_up()
        self._booting.discard(instance_id)
        return self._consoles[instance_id]

    def kill(self, instance_id: str) -> None:
        """End its QEMU at once, by pid: one that hangs or is busy takes ten seconds to be destroyed."""
        name = self._made[instance_id] or f"{PREFIX}-{instance_id[:8]}"
        for path in Path(self.host.folder).glob(f"run/libvirt/qemu/run/{name}.pid"):
            with contextlib.suppress(OSError, ValueError):
                os.kill(int(path.read_text()), signal.SIGKILL)

    def drop_console(self, instance_id: str) -> None:
        """Let go of the serial port."""
        self._booting.discard(instance_id)
        console = self._consoles.pop(instance_id, None)
        if console is not None:
            console.close()

    def reconnect(self) -> None:
        """A new connection, after the daemon was killed."""
        with contextlib.suppress(Exception):
            self.connection.close()
        self.connection = open_libvirt(self.host.uri)

    def image(self, size: int = 4 << 20) -> FileSource:
        """A fresh raw image file of *size* bytes."""
        path = Path(self.host.images) / f"{PREFIX}-{uuid.uuid4().hex}.img"
        with path.open("wb") as file:
            file.truncate(size)
        path.chmod(0o666)
        return FileSource(str(path))

    def clear(self) -> None:
        """Destroy and undefine them all."""
        import libvirt

        for instance_id in list(self._consoles):
            self.drop_console(instance_id)
        for instance_id in self._made:
            self.kill(instance_id)
            with contextlib.suppress(libvirt.libvirtError):
                domain = self.domain(instance_id)
                with contextlib.suppress(libvirt.libvirtError):
                    domain.destroyFlags(0)
                with contextlib.suppress(libvirt.libvirtError):
                    domain.undefine()
        self._made.clear()
        for path in Path(self.host.images).glob(f"{PREFIX}-*.img"):
            path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()
        self.connection.close()
