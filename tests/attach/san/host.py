"""A host with storage, for os-brick's own code: block storage of one array, seen through commands that stand in.

No test machine has the kernel's iSCSI and NVMe initiators, udev or multipathd. So a test runs in a thread with a mount
namespace of its own, in which ``/sys``, ``/dev`` and the commands are those of :mod:`tests.attach.san.tools`; os-brick,
its locks, its threads and its subprocesses are the real ones. Commands are logged.
"""

import ctypes
import functools
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.attach.san import tools
from tests.services._client import required

_TOOLS = Path(__file__).with_name("tools.py")
COMMANDS = ("iscsiadm", "tee", "blockdev", "lsscsi", "multipath", "multipathd", "mount", "nvme", "scsi_id")
_NEWNS = 0x00020000
_TREES = (
    "block", "bus/scsi/drivers/sd", "class/block", "class/iscsi_host", "class/nvme-fabrics/ctl", "class/scsi_host",
    "module/nvme_core/parameters",
)  # fmt: skip
PORTALS = ("10.0.0.1:3260", "10.0.0.2:3260")
GIB = 2**30


def require_namespaces() -> None:
    """Skip, or fail where everything is required, without the right to mount."""
    if os.geteuid() != 0 or "overlay" not in Path("/proc/filesystems").read_text():
        reason = "not root on Linux with overlayfs: no mount namespace with storage"
        if required("all"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)


class San:
    """An array, and the host that it serves.

    Args:
        folder: For state, log, contents of the LUNs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.locks = folder / "locks"
        self._write(
            {
                "targets": {}, "nodes": {}, "sessions": {}, "devices": {}, "maps": {}, "wwids": [], "counter": 0,
                "multipathd": True, "faults": {}, "exports": {}, "subsystems": {}, "controllers": {},
                "namespaces": {},
            }
        )  # fmt: skip
        (folder / "slowness").write_text("0")
        (folder / "bin").mkdir()
        for command in COMMANDS:
            self._command(folder / "bin" / command)

    def _command(self, path: Path) -> None:
        path.write_text(f"#!{sys._base_executable} -IS\n{_TOOLS.read_text()}")
        path.chmod(0o755)

    # --- the array ---------------------------------------------------------------------------------------------------

    def target(self, iqn: str, portals=PORTALS[:1], chap: list[str] | None = None) -> str:
        """An iSCSI target without LUNs."""
        self.change(lambda state: state["targets"].update({iqn: {"portals": portals, "luns": {}, "chap": chap}}))
        return iqn

    def lun(self, iqn: str, number: int, size: int = GIB) -> Path:
        """Map a LUN of *iqn*; the file holds its bytes."""
        backing = self.folder / f"lun-{abs(hash((iqn, number))):x}"
        backing.write_bytes(b"\0" * 512)
        wwn = f"6001405{number:025x}"
        lun = {"wwn": wwn, "backing": str(backing), "size": size}
        self.change(lambda state: state["targets"][iqn]["luns"].update({str(number): lun}))
        return backing

    def unmap(self, iqn: str, number: int) -> None:
        """Take a LUN of *iqn* away. The host is not told: a device of it stays."""
        self.change(lambda state: state["targets"][iqn]["luns"].pop(str(number)))

    def grow(self, iqn: str, number: int, size: int) -> None:
        """Make a LUN larger; the host does not know until it looks."""
        self.change(lambda state: state["targets"][iqn]["luns"][str(number)].update(size=size))

    def subsystem(self, nqn: str, portals=("10.0.0.1:4420", "10.0.0.2:4420")) -> str:
        """An NVMe subsystem without namespaces."""
        self.change(lambda state: state["subsystems"].update({nqn: {"portals": portals, "namespaces": {}}}))
        return nqn

    def namespace(self, nqn: str, number: int, uuid: str, size: int = GIB) -> Path:
        """Map a namespace of *nqn*; the file holds its bytes."""
        backing = self.folder / f"namespace-{number}-{uuid}"
        backing.write_bytes(b"\0" * 512)
        space = {"uuid": uuid, "backing": str(backing), "size": size}
        self.change(lambda state: state["subsystems"][nqn]["namespaces"].update({str(number): space}))
        return backing

    def unmap_namespace(self, nqn: str, number: int) -> None:
        """Take a namespace of *nqn* away; the host is told."""
        self.change(lambda state: tools.take_namespace(state, nqn, number))

    def export(self, share: str) -> Path:
        """An NFS share; the folder holds its files."""
        folder = self.folder / share.replace("/", "_").replace(":", "_")
        folder.mkdir()
        self.change(lambda state: state["exports"].update({share: str(folder)}))
        return folder

    # --- the host ----------------------------------------------------------------------------------------------------

    def fail(self, what: str, *names: str) -> None:
        """Let something fail: ``flush`` of devices, ``portals``, ``parameters`` of nodes; no name mends it."""
        self.change(lambda state: state["faults"].update({what: list(names)}))

    @property
    def state(self) -> dict:
        """As it is now."""
        return json.loads((self.folder / "state.json").read_text())

    def change(self, edit) -> None:
        """Edit the state while no command runs."""
        state = self.state
        edit(state)
        self._write(state)

    def _write(self, state: dict) -> None:
        (self.folder / "state.json").write_text(json.dumps(state))

    def log(self) -> list[tuple[str, int, list[str]]]:
        """(``begin`` or ``end``, who, command) of every call so far."""
        try:
            lines = (self.folder / "log").read_text().splitlines()
        except FileNotFoundError:
            return []
        return [tuple(json.loads(line)) for line in lines]

    def commands(self, name: str) -> list[str]:
        """What was called of the command *name*, in order."""
        return [" ".join(words) for phase, _, words in self.log() if phase == "begin" and words[0] == name]

    def enter(self) -> None:
        """Give this thread, and what it starts, the host's view of ``/sys``, ``/dev`` and ``/etc``."""
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(_NEWNS) != 0:
            raise OSError(ctypes.get_errno(), "unshare")
        _run("/usr/bin/mount", "--make-rprivate", "/")
        scratch = self.folder / "scratch"
        scratch.mkdir()
        _run("/usr/bin/mount", "-t", "tmpfs", "none", str(scratch))
        self._overlay(scratch, "/etc")
        self._devices(scratch)
        _run("/usr/bin/mount", "-t", "tmpfs", "none", "/sys")
        for tree in (
            "block",
            "class/scsi_host",
            "class/iscsi_host",
            "bus/scsi/drivers/sd",
            "class/nvme-fabrics/ctl",
            "class/block",
            "module/nvme_core/parameters",
        ):
            Path("/sys", tree).mkdir(parents=True)
        Path("/sys/module/nvme_core/parameters/multipath").write_text("Y\n")
        Path("/etc/iscsi").mkdir(exist_ok=True)
        Path("/etc/iscsi/initiatorname.iscsi").write_text("InitiatorName=iqn.2016-04.com.open-iscsi:here\n")

    @staticmethod
    def _overlay(scratch: Path, place: str) -> None:
        upper, work = scratch / f"upper{place.replace('/', '-')}", scratch / f"work{place.replace('/', '-')}"
        upper.mkdir()
        work.mkdir()
        _run(
            "/usr/bin/mount",
            "-t",
            "overlay",
            "overlay",
            "-o",
            f"lowerdir={place},upperdir={upper},workdir={work}",
            place,
        )

    @staticmethod
    def _devices(scratch: Path) -> None:
        """A ``/dev`` of its own, with the few that every program wants."""
        usual = scratch / "usual"
        usual.mkdir()
        _run("/usr/bin/mount", "--rbind", "/dev", str(usual))
        _run("/usr/bin/mount", "-t", "tmpfs", "none", "/dev")
        for name in ("null", "zero", "full", "random", "urandom", "tty"):
            Path("/dev", name).touch()
            _run("/usr/bin/mount", "--bind", str(usual / name), f"/dev/{name}")
        for name in ("shm", "pts"):
            Path("/dev", name).mkdir()
            if (usual / name).is_dir():
                _run("/usr/bin/mount", "--rbind", str(usual / name), f"/dev/{name}")
        os.symlink("/proc/self/fd", "/dev/fd")
        for name in ("disk/by-path", "disk/by-id", "mapper"):
            Path("/dev", name).mkdir(parents=True)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def on_the_host(test):
    """Let *test*, whose first argument is a :class:`San`, run on its host: in a thread of its own."""

    @functools.wraps(test)
    def run(san, *args, **kwargs):
        raised = []

        def body():
            try:
                san.enter()
                test(san, *args, **kwargs)
            except BaseException as error:
                raised.append(error)

        thread = threading.Thread(target=body)
        thread.start()
        thread.join()
        if raised:
            raise raised[0]

    return run
