"""Attach a volume to a guest that libvirt runs, in ten lines.

``python examples/attach_to_guest.py URI GUEST_UUID /path/to/image.raw`` does it on a real host, such as
``qemu:///system``. Without arguments it does the same on a host in memory.
"""

from __future__ import annotations

import sys
import uuid

from cloudcore import LibvirtHypervisor, MemoryHypervisor
from cloudcore.disks import DetachOutcome, Disk, FileSource
from cloudcore.hypervisor import Hypervisor


def attach_and_detach(hypervisor: Hypervisor, guest: str, path: str) -> None:
    """The ten lines."""
    disk = Disk(volume_id=str(uuid.uuid4()), source=FileSource(path))
    state = hypervisor.attach_disk(guest, disk)  # live if it runs, and in its definition
    for where, found in (("live", state.live), ("persistent", state.persistent)):
        print(f"{where:10} {found.target if found else '-'}")  # as read back
    outcome = hypervisor.detach_disk(guest, disk.volume_id)  # waits for the guest
    if outcome is DetachOutcome.PENDING:
        print("asked, but the guest has not let go yet: ask again later")
    else:
        print("detached")


def main() -> None:
    """On the host and guest of the arguments, or in memory."""
    if len(sys.argv) == 4:
        uri, guest, path = sys.argv[1:]
        with LibvirtHypervisor(uri) as hypervisor:
            attach_and_detach(hypervisor, guest, path)
        return
    with MemoryHypervisor() as hypervisor:
        guest = str(uuid.uuid4())
        hypervisor.add_guest(guest)
        attach_and_detach(hypervisor, guest, "/images/data.raw")


if __name__ == "__main__":
    main()
