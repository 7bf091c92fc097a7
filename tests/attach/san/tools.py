"""The commands of a host with storage: iscsiadm, multipath, nvme and their kin, over one state that they share.

Run by the name under which it is called. It stands for what a test machine lacks, the kernel's initiators, udev and
multipathd, and keeps to what they show: the trees in ``/sys`` and ``/dev`` (of a mount namespace of the test's own),
exit codes, lines of output. A device is a file that caches what its LUN holds: what was written and not flushed before
the device goes is lost, as with a real one.
"""

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

COPIED = 4096
"""Bytes of a LUN that are copied into its device and back: the rest is a hole."""


class Failure(Exception):
    def __init__(self, code, text=""):
        super().__init__(text)
        self.code = code


class Machine:
    """State, and what follows from changes of it."""

    def __init__(self, state):
        self.state = state

    # --- LUNs and devices --------------------------------------------------------------------------------------------

    def lun(self, iqn, number):
        return self.state["targets"][iqn]["luns"][str(number)]

    def add_device(self, session, number):
        lun = self.lun(session["iqn"], number)
        devices = self.state["devices"]
        if any(d["sid"] == session["sid"] and d["lun"] == number for d in devices.values()):
            return
        name = next(f"sd{c}" for c in "abcdefghijklmnopqrstuvwxyz" if f"sd{c}" not in devices)
        hctl = f"{session['host']}:0:0:{number}"
        place = Path(
            f"/sys/class/scsi_host/host{session['host']}/device/session{session['sid']}/target{session['host']}:0:0"
        )
        (place / hctl / "block" / name).mkdir(parents=True)
        block = Path("/sys/block", name)
        (block / "device").mkdir(parents=True)
        (block / "holders").mkdir()
        (block / "device" / "wwid").write_text(f"naa.{lun['wwn']}\n")
        (block / "device" / "delete").write_text("")
        rescan = Path("/sys/bus/scsi/drivers/sd", hctl)
        rescan.mkdir(parents=True)
        (rescan / "rescan").write_text("")
        by_path = f"/dev/disk/by-path/ip-{session['portal']}-iscsi-{session['iqn']}-lun-{number}"
        devices[name] = {"sid": session["sid"], "lun": number, "hctl": hctl, "iqn": session["iqn"], "links": [by_path]}
        devices[name] |= {"tree": str(place / hctl), "wwn": lun["wwn"]}
        self.fill(f"/dev/{name}", lun)
        link(by_path, name)
        link(f"/dev/disk/by-id/scsi-3{lun['wwn']}", name)
        if f"3{lun['wwn']}" in self.state["wwids"]:
            self.join(name)

    def fill(self, path, lun):
        content = Path(lun["backing"]).read_bytes()[:COPIED]
        with open(path, "wb") as device:
            device.write(content)
            device.truncate(lun["size"])

    def flush(self, path, lun):
        if os.path.basename(path) in self.state["faults"].get("flush", []):
            raise Failure(1, f"blockdev: ioctl error on BLKFLSBUF {path}: Input/output error")
        with open(path, "rb") as device, open(lun["backing"], "r+b") as backing:
            backing.write(device.read(COPIED))

    def remove_device(self, name):
        device = self.state["devices"].pop(name)
        for held in list(self.state["maps"].values()):
            if name in held["paths"]:
                held["paths"].remove(name)
        shutil.rmtree(device["tree"])
        shutil.rmtree(f"/sys/block/{name}")
        shutil.rmtree(f"/sys/bus/scsi/drivers/sd/{device['hctl']}")
        os.unlink(f"/dev/{name}")
        for each in device["links"]:
            os.unlink(each)
        wwn_link = f"/dev/disk/by-id/scsi-3{device['wwn']}"  # its LUN may be unmapped
        if os.path.islink(wwn_link) and not os.path.exists(wwn_link):
            os.unlink(wwn_link)

    def lun_of(self, name):
        if name in self.state["namespaces"]:
            nqn, number = self.state["namespaces"][name]
            return self.state["subsystems"][nqn]["namespaces"][number]
        if name in self.state["maps"]:
            name = self.state["maps"][name]["first"]
            return self.lun(name["iqn"], name["lun"])
        device = self.state["devices"][name]
        return self.lun(device["iqn"], device["lun"])

    # --- multipath ---------------------------------------------------------------------------------------------------

    def join(self, name):
        """Let the path *name* be part of its multipath, which is made with its first path."""
        device = self.state["devices"][name]
        lun = self.lun(device["iqn"], device["lun"])
        wwid = f"3{lun['wwn']}"
        for dm, held in self.state["maps"].items():
            if held["wwid"] == wwid:
                if name not in held["paths"]:
                    held["paths"].append(name)
                Path("/sys/block", name, "holders", dm).mkdir(exist_ok=True)
                return
        dm = next(f"dm-{n}" for n in range(100) if f"dm-{n}" not in self.state["maps"])
        folder = Path("/sys/block", dm, "dm")
        folder.mkdir(parents=True)
        (folder / "name").write_text(f"{wwid}\n")
        (folder / "uuid").write_text(f"mpath-{wwid}\n")
        self.fill(f"/dev/{dm}", lun)
        link(f"/dev/mapper/{wwid}", dm, up="../")
        link(f"/dev/disk/by-id/dm-uuid-mpath-{wwid}", dm)
        Path("/sys/block", name, "holders", dm).mkdir()
        self.state["maps"][dm] = {
            "wwid": wwid,
            "paths": [name],
            "first": {"iqn": device["iqn"], "lun": device["lun"]},
        }

    def remove_map(self, dm):
        held = self.state["maps"].pop(dm)
        for name in held["paths"]:
            os.rmdir(f"/sys/block/{name}/holders/{dm}")
        shutil.rmtree(f"/sys/block/{dm}")
        for path in (f"/dev/{dm}", f"/dev/mapper/{held['wwid']}", f"/dev/disk/by-id/dm-uuid-mpath-{held['wwid']}"):
            os.unlink(path)

    def map_named(self, name):
        for dm, held in self.state["maps"].items():
            if name in {dm, f"/dev/{dm}", held["wwid"], f"/dev/mapper/{held['wwid']}"}:
                return dm
        raise Failure(1, f"{name}: no such map")


def link(path, name, up="../../"):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if os.path.islink(path):
        os.unlink(path)
    os.symlink(f"{up}{name}", path)


# --- iscsiadm --------------------------------------------------------------------------------------------------------


def options(arguments):
    found, rest = {}, list(arguments)
    while rest:
        name = rest.pop(0)
        if name in {"--login", "--logout", "--discover"}:
            found[name] = True
        else:
            found.setdefault(name, []).append(rest.pop(0))
    return {name: value if value is True else value[0] for name, value in found.items()}


def iscsiadm(machine, arguments):
    given = options(arguments)
    operation = given.get("--op") or given.get("-o")
    state = machine.state
    if given["-m"] == "session":
        if not state["sessions"]:
            raise Failure(21, "iscsiadm: No active sessions.")
        return "".join(
            f"tcp: [{s['sid']}] {s['portal']},1 {s['iqn']} (non-flash)\n" for s in state["sessions"].values()
        )
    if given["-m"] in {"discovery", "discoverydb"}:
        return _discovery(state, given, operation)
    if given["-m"] != "node":
        raise Failure(7, f"iscsiadm: {arguments}")
    if "-T" not in given:
        if operation == "show":
            return "".join(
                f"node.name = {n['iqn']}\nnode.startup = {n['values'].get('node.startup', 'manual')}\n"
                for n in state["nodes"].values()
                if n["portal"] == given["-p"]
            )
        return "".join(f"{n['portal']},1 {n['iqn']}\n" for n in state["nodes"].values())
    return _node(machine, given, operation)


def _discovery(state, given, operation):
    if operation == "show":
        return "SENDTARGETS:\nNo targets found.\niSNS:\nNo targets found.\n"
    if given["-p"] in state["faults"].get("portals", []):
        raise Failure(4, f"iscsiadm: cannot make connection to {given['-p']}")
    targets = [(iqn, t) for iqn, t in state["targets"].items() if given["-p"] in t["portals"]]
    return "".join(f"{portal},1 {iqn}\n" for iqn, t in targets for portal in t["portals"])


def _node(machine, given, operation):
    state, iqn, portal = machine.state, given["-T"], given["-p"]
    key = f"{portal} {iqn}"
    node = state["nodes"].get(key)
    if operation == "new":
        state["nodes"].setdefault(key, {"portal": portal, "iqn": iqn, "values": {}})
        return ""
    if node is None:
        raise Failure(21, "iscsiadm: No records found")
    session = next((s for s in state["sessions"].values() if (s["portal"], s["iqn"]) == (portal, iqn)), None)
    if operation == "update":
        if given["-n"] in state["faults"].get("parameters", []):
            raise Failure(6, f"iscsiadm: Cannot modify {given['-n']}. Invalid param name.")
        node["values"][given["-n"]] = given["-v"]
    elif operation == "delete":
        if session is not None:
            raise Failure(15, "iscsiadm: session exists")
        del state["nodes"][key]
    elif given.get("--login"):
        _login(machine, node, session)
    elif given.get("--logout"):
        if session is None:
            raise Failure(21, "iscsiadm: No matching sessions found")
        for name in [n for n, d in state["devices"].items() if d["sid"] == session["sid"]]:
            machine.remove_device(name)
        for tree in ("scsi_host", "iscsi_host"):
            shutil.rmtree(f"/sys/class/{tree}/host{session['host']}")
        del state["sessions"][str(session["sid"])]
    return ""


def _login(machine, node, session):
    state = machine.state
    if session is not None:
        raise Failure(15, "iscsiadm: session exists")
    if node["portal"] in state["faults"].get("portals", []):
        raise Failure(8, "iscsiadm: connection timed out")
    target = state["targets"].get(node["iqn"])
    if target is None or node["portal"] not in target["portals"]:
        raise Failure(19, "iscsiadm: no such target")
    chap = target.get("chap")
    values = node["values"]
    said = [values.get("node.session.auth.username"), values.get("node.session.auth.password")]
    if chap is not None and said != chap:
        raise Failure(24, "iscsiadm: login failed, authorization failure")
    state["counter"] += 1
    sid = host = state["counter"]
    made = state["sessions"][str(sid)] = {"sid": sid, "host": host, "portal": node["portal"], "iqn": node["iqn"]}
    for tree in ("scsi_host", "iscsi_host"):
        os.makedirs(f"/sys/class/{tree}/host{host}/device/session{sid}")
    Path(f"/sys/class/scsi_host/host{host}/scan").write_text("")
    if values.get("node.session.scan") != "manual":
        for number in target["luns"]:
            machine.add_device(made, int(number))


# --- the kernel, asked by writing into its files ---------------------------------------------------------------------


def tee(machine, arguments, said):
    path, said = arguments[-1], said.strip()
    state, parts = machine.state, path.split("/")
    if path.endswith("/scan"):
        number = said.split()[-1]
        for session in list(state["sessions"].values()):
            if f"host{session['host']}" == parts[4]:
                luns = state["targets"][session["iqn"]]["luns"]
                for each in luns if number == "-" else [n for n in luns if n == number]:
                    machine.add_device(session, int(each))
    elif path.endswith("/device/delete"):
        machine.remove_device(parts[3])
    elif path.endswith("/rescan"):
        name = next(n for n, d in state["devices"].items() if d["hctl"] == parts[6])
        os.truncate(f"/dev/{name}", machine.lun_of(name)["size"])
    else:
        raise Failure(1, f"tee: {path}: Permission denied")
    return said


def blockdev(machine, arguments):
    what, path = arguments
    name = os.path.basename(os.path.realpath(path))
    if what == "--getsize64":
        return f"{os.path.getsize(path)}\n"
    if what != "--flushbufs":
        raise Failure(1, f"blockdev: {what}")
    machine.flush(f"/dev/{name}", machine.lun_of(name))
    return ""


def lsscsi(machine, arguments):
    return "".join(f"[{d['hctl']}]  disk  LIO  lun  4.0  /dev/{n}\n" for n, d in machine.state["devices"].items())


def scsi_id(machine, arguments):
    name = os.path.basename(os.path.realpath(arguments[-1]))
    return f"3{machine.lun_of(name)['wwn']}\n"


# --- multipath -------------------------------------------------------------------------------------------------------


def multipath(machine, arguments):
    option, name = arguments[0], arguments[-1]
    if option == "-a":
        if name not in machine.state["wwids"]:
            machine.state["wwids"].append(name)
        return f"wwid '{name}' added\n"
    if option == "-f":
        dm = machine.map_named(name)
        machine.flush(f"/dev/{dm}", machine.lun_of(dm))
        machine.remove_map(dm)
        return ""
    if option == "-C":
        machine.map_named(name)
        return ""
    raise Failure(1, f"multipath: {arguments}")


def multipathd(machine, arguments):
    state = machine.state
    if not state["multipathd"]:
        raise Failure(1, "error -111 connecting to multipathd")
    if arguments[:2] == ["show", "status"]:
        return "path checker states:\nup 1\n"
    if arguments[:2] == ["show", "paths"]:
        return "".join(f"{name}\n" for held in state["maps"].values() for name in held["paths"])
    if arguments[:2] == ["add", "path"]:
        name = os.path.basename(arguments[2])
        lun = machine.lun_of(name)
        if f"3{lun['wwn']}" in state["wwids"]:
            machine.join(name)
        return "ok\n"
    if arguments[:2] == ["del", "map"]:
        machine.remove_map(machine.map_named(arguments[2]))
        return "ok\n"
    if arguments[:2] == ["del", "path"]:
        return "ok\n"
    if arguments[:2] == ["resize", "map"]:
        dm = machine.map_named(arguments[2])
        os.truncate(f"/dev/{dm}", machine.lun_of(dm)["size"])
        return "ok\n"
    if arguments == ["reconfigure"]:
        return "ok\n"
    raise Failure(1, f"multipathd: {arguments}")


# --- NVMe over fabrics -----------------------------------------------------------------------------------------------


def nvme(machine, arguments):
    verb = arguments[0]
    if verb == "version":
        return "nvme version 2.8\n"
    if verb == "show-hostnqn":
        return "nqn.2014-08.org.nvmexpress:uuid:here\n"
    if verb == "connect":
        return _nvme_connect(machine, dict(_pairs(arguments[1:])))
    if verb == "disconnect":
        _nvme_disconnect(machine, os.path.basename(arguments[2]))
        return ""
    if verb == "ns-rescan":
        if os.path.basename(arguments[1]) not in machine.state["controllers"]:
            raise Failure(1, f"Failed to open {arguments[1]}")
        _nvme_scan(machine, os.path.basename(arguments[1]))
        return ""
    if verb == "id-ns":
        name = os.path.basename(arguments[-1])
        lun = machine.lun_of(name)
        _nvme_fill(machine, name, grow=True)
        return json.dumps({"nsze": lun["size"] // 512, "lbafs": [{"ds": 9}]})
    raise Failure(1, f"nvme: {arguments}")


def _pairs(arguments):
    return list(zip(arguments[::2], arguments[1::2], strict=True))


def _nvme_connect(machine, given):
    state, portal = machine.state, f"{given['-a']}:{given['-s']}"
    if portal in state["faults"].get("portals", []) or portal not in state["subsystems"][given["-n"]]["portals"]:
        raise Failure(1, "failed to write to nvme-fabrics device")
    name = next(f"nvme{n}" for n in range(100) if f"nvme{n}" not in state["controllers"])
    state["controllers"][name] = {"nqn": given["-n"], "portal": portal}
    folder = Path("/sys/class/nvme-fabrics/ctl", name)
    folder.mkdir(parents=True)
    for file, value in {
        "subsysnqn": given["-n"],
        "transport": "tcp",
        "address": f"traddr={given['-a']},trsvcid={given['-s']}",
        "state": "live",
    }.items():
        (folder / file).write_text(value)
    _nvme_scan(machine, name)
    return ""


def _nvme_scan(machine, name):
    """Show the namespaces of a controller: one device for each, whatever the number of controllers."""
    state, nqn = machine.state, machine.state["controllers"][name]["nqn"]
    head = next(n for n, c in state["controllers"].items() if c["nqn"] == nqn)
    for number, lun in state["subsystems"][nqn]["namespaces"].items():
        device = f"{head}n{number}"
        channel = device if name == head else f"{head}c{name[4:]}n{number}"
        folder = Path("/sys/class/nvme-fabrics/ctl", name, channel)
        folder.mkdir(exist_ok=True)
        (folder / "uuid").write_text(lun["uuid"])
        if device not in state["namespaces"]:
            state["namespaces"][device] = [nqn, number]
            Path("/sys/class/block", device).mkdir(parents=True, exist_ok=True)
            _nvme_fill(machine, device)


def _nvme_fill(machine, device, *, grow=False):
    lun = machine.lun_of(device)
    Path("/sys/class/block", device, "size").write_text(str(lun["size"] // 512))
    if grow:
        os.truncate(f"/dev/{device}", lun["size"])
    else:
        machine.fill(f"/dev/{device}", lun)


def _nvme_disconnect(machine, name):
    state, nqn = machine.state, machine.state["controllers"].pop(name)["nqn"]
    shutil.rmtree(f"/sys/class/nvme-fabrics/ctl/{name}")
    if any(each["nqn"] == nqn for each in state["controllers"].values()):
        return
    for device in [d for d, (its, _) in state["namespaces"].items() if its == nqn]:
        _nvme_forget(state, device)


def _nvme_forget(state, device):
    del state["namespaces"][device]
    os.unlink(f"/dev/{device}")
    shutil.rmtree(f"/sys/class/block/{device}")


def take_namespace(state, nqn, number):
    """The array unmaps a namespace and tells the host, which forgets its device."""
    del state["subsystems"][nqn]["namespaces"][str(number)]
    for name in [name for name, its in state["controllers"].items() if its["nqn"] == nqn]:
        for channel in Path("/sys/class/nvme-fabrics/ctl", name).glob(f"nvme*n{number}"):
            shutil.rmtree(channel)
    for device in [device for device, its in state["namespaces"].items() if its == [nqn, str(number)]]:
        _nvme_forget(state, device)


# --- NFS -------------------------------------------------------------------------------------------------------------


def mount(machine, arguments):
    if "-t" not in arguments:
        raise Failure(1, f"mount: {arguments}")
    share, place = arguments[-2:]
    folder = machine.state["exports"].get(share)
    if folder is None:
        raise Failure(32, f"mount.nfs: access denied by server while mounting {share}")
    subprocess.run(["/usr/bin/mount", "--bind", folder, place], check=True)
    return ""


# --- one call --------------------------------------------------------------------------------------------------------


def folder():
    return Path(os.environ["SAN"])


@contextlib.contextmanager
def locked():
    with open(folder() / "state.json", "r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        machine = Machine(json.load(file))
        try:
            yield machine
        finally:
            file.seek(0)
            file.truncate()
            json.dump(machine.state, file)


def note(phase, name, arguments):
    line = json.dumps([phase, int(os.environ.get("SAN_WHO", "0")), [name, *map(str, arguments)]]) + "\n"
    with open(folder() / "log", "a") as log:
        log.write(line)  # short enough to be one write


def call(name, arguments, said=""):
    """(exit code, output, what went wrong) of one command."""
    note("begin", name, arguments)
    time.sleep(float((folder() / "slowness").read_text()))
    command = globals()[name]
    try:
        with locked() as machine:
            output = command(machine, arguments, said) if command is tee else command(machine, arguments)
        return 0, output, ""
    except Failure as failure:
        return failure.code, "", f"{failure}\n"
    finally:
        note("end", name, arguments)


if __name__ == "__main__":
    called = os.path.basename(sys.argv[0])
    code, output, trouble = call(called, sys.argv[1:], sys.stdin.read() if called == "tee" else "")
    sys.stdout.write(output)
    sys.stderr.write(trouble)
    sys.exit(code)
