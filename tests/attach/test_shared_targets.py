"""Volumes of one target on one host, by os-brick's own connectors: connecting and disconnecting take turns.

Each test stops one service of the host in the middle of a step and lets another do its whole one there, in the same
thread: it finds the lease taken, gives up at once (it has no patience), and is repeated later. Where there is no lease,
what it did shows in the devices.
"""

import contextlib
import os
import re

import attrs
import pytest
from oslo_concurrency import lockutils

from cloudcore import _failpoints, errors
from cloudcore.attach.hosts.brick import BrickConnector
from cloudcore.attach.hosts.guests import MemoryGuests
from cloudcore.attach.volumes.values import ConnectionInfo
from tests.attach.conftest import instance
from tests.attach.san import tools
from tests.attach.san.fixtures import SanVolumes, iscsi
from tests.attach.san.host import on_the_host

BACKEND = "33333333-3333-4333-8333-333333333333"
LEASE = f"target/compute-1/{BACKEND}"
IQN = "iqn.2010-10.org.openstack:backend"
NQN = "nqn.2014-08.org.nvmexpress:backend"


class MaskedVolumes(SanVolumes):
    """The array shows a LUN or a namespace to the host only while its volume is mapped."""

    def __init__(self, san, database, **backend):
        super().__init__(database, **backend)
        self._san = san

    def on_iscsi(self, number, iqn=IQN):
        """A new volume, which will be a LUN of *iqn*."""
        if iqn not in self._san.state["targets"]:
            self._san.target(iqn)
        volume = self.create_volume().id
        self.connections[volume] = iscsi(iqn, number, volume)
        return volume

    def on_nvme(self, number):
        """A new volume, which will be a namespace of the one subsystem."""
        if NQN not in self._san.state["subsystems"]:
            self._san.subsystem(NQN)
        volume = self.create_volume().id
        data = {"target_nqn": NQN, "portals": [["10.0.0.1", 4420, "tcp"]], "vol_uuid": volume, "ns": number}
        self.connections[volume] = ConnectionInfo("nvmeof", data, volume_id=volume)
        return volume

    def update(self, attachment_id, connector):
        made = super().update(attachment_id, connector)
        known = self.connections[made.volume_id]
        if known.kind == "iscsi":
            self._san.lun(known.data["target_iqn"], known.data["target_lun"])
        else:
            self._san.namespace(NQN, known.data["ns"], made.volume_id)
        return made

    def delete(self, attachment_id):
        known = self.connections[self.attachment(attachment_id).volume_id]
        super().delete(attachment_id)
        if known.kind == "iscsi":
            self._san.unmap(known.data["target_iqn"], known.data["target_lun"])
        else:
            self._san.unmap_namespace(NQN, known.data["ns"])


class ForgetfulGuests(MemoryGuests):
    """The persistent definition of a guest lacks the volume *forgotten*, until it is given again."""

    forgotten = None

    def attach_disk(self, instance_id, disk):
        if disk.volume_id == self.forgotten:
            self.forgotten = None
        return super().attach_disk(instance_id, disk)

    def disk_states(self):
        return tuple(
            attrs.evolve(state, persistent=None) if state.volume_id == self.forgotten else state
            for state in super().disk_states()
        )


@pytest.fixture
def services(san, journal_database, new_manager, brick):
    """Of the volumes' backend and of two services of its host, of which the second has no patience."""
    opened = []

    def open_them(shared_targets, *, service_uuid=BACKEND):
        volumes = MaskedVolumes(san, journal_database, service_uuid=service_uuid, shared_targets=shared_targets)
        guests = ForgetfulGuests("compute-1")
        made = (new_manager(volumes, guests, connectors={"compute-1": brick}, patience=p) for p in (240.0, 0.0))
        opened.append(volumes)
        return volumes, *made

    yield open_them
    _failpoints.disarm()
    for volumes in opened:
        volumes.check()


@pytest.fixture
def before(monkeypatch):
    """Do something before the host's first command that matches *pattern*.

    os-brick's own lock does not help then: it is as if each service had a directory of locks of its own.
    """

    def arm(pattern, action):
        call, pending = tools.call, [action]

        def calls(name, arguments, said=""):
            if pending and re.match(pattern, " ".join(map(str, (name, *arguments)))):
                pending.pop()()
            return call(name, arguments, said)

        monkeypatch.setattr(tools, "call", calls)

    monkeypatch.setattr(lockutils, "lock", lambda *_, **__: contextlib.nullcontext())
    return arm


def refusal(call, *arguments, **options):
    """The lease for which it was refused; None if it was done."""
    try:
        call(*arguments, **options)
    except errors.VolumeBusy as busy:
        return busy.identifier
    return None


def attached(manager, volume):
    """Its attachment, made now if it was refused before; the host has its device."""
    found = [leg for leg in manager.attachments(volume_id=volume) if leg.state == "attached"]
    leg = found[0] if found else manager.attach(volume, instance(), host="compute-1")
    assert os.path.exists(leg.device.source.path), "its device was taken away from under it"
    return leg


def devices(san):
    """Paths of what the host sees."""
    return sorted(f"/dev/{name}" for name in (*san.state["devices"], *san.state["namespaces"]))


TRANSPORTS = [
    ("on_iscsi", True, "iscsiadm.*--logout", "tee .*/scan"),
    ("on_nvme", None, "nvme disconnect", "nvme ns-rescan"),
]


@pytest.mark.parametrize(("kind", "shared", "leaves", "looks"), TRANSPORTS, ids=["iscsi", "nvme"])
@on_the_host
def test_nobody_leaves_a_target_that_another_came_to_use(san, services, before, kind, shared, leaves, looks):
    """One has seen that no other device is left, and is about to log out: then the other one's appears."""
    volumes, here, there = services(shared)
    first, second = (getattr(volumes, kind)(number) for number in (1, 2))
    leg, refused = here.attach(first, instance(), host="compute-1"), []
    before(leaves, lambda: refused.append(refusal(there.attach, second, instance(), host="compute-1")))
    here.detach(leg.id)
    used = attached(there, second)
    assert refused == [LEASE]
    assert devices(san) == [used.device.source.path]
    assert here.audit().clean


@pytest.mark.parametrize(("kind", "shared", "leaves", "looks"), TRANSPORTS, ids=["iscsi", "nvme"])
@on_the_host
def test_nobody_leaves_a_target_at_which_another_looks(san, services, before, kind, shared, leaves, looks):
    """One has logged in, or found the other's login, and its device is still to appear: then the other one leaves."""
    volumes, here, there = services(shared)
    first, second = (getattr(volumes, kind)(number) for number in (1, 2))
    leg, refused = here.attach(first, instance(), host="compute-1"), []
    before(looks, lambda: refused.append(refusal(there.detach, leg.id)))
    used = here.attach(second, instance(), host="compute-1")
    there.recover()
    assert refused == [LEASE]
    assert there.attachment(leg.id).state == "absent"
    assert devices(san) == [attached(here, second).device.source.path] == [used.device.source.path]
    assert here.audit().clean


@on_the_host
def test_whoever_gives_up_says_what_is_left(san, services):
    volumes, here, there = services(True)
    first, second = volumes.on_iscsi(1), volumes.on_iscsi(2)
    told = []

    def attach(_):
        with pytest.raises(errors.VolumeBusy) as caught:
            there.attach(second, instance(), host="compute-1")
        told.extend(caught.value.__notes__)

    _failpoints.arm("attach.connect.before", attach)
    here.attach(first, instance(), host="compute-1")
    (left,) = there.attachments(volume_id=second)
    assert f"attachment {left.id} is left mapping" in told[0]
    assert there.recover().complete
    assert not volumes.attachments(volume_id=second)


def lose_one_of_two(volumes, manager):
    """Two legs on one target; the device of the first is gone."""
    lost, leaving = (manager.attach(volumes.on_iscsi(n), instance(), host="compute-1") for n in (1, 2))
    tools.call("tee", ["-a", "/sys/block/sda/device/delete"], "1")
    return lost, leaving


def heal_while_another_leaves(lost, leaving, here, there, before, findings=None):
    """The lease keeps the healing out just before the logout; once the other has left it works."""
    failed = []
    before("iscsiadm.*--logout", lambda: failed.extend(there.heal(findings, apply=True).failed))
    here.detach(leaving.id)
    there.heal(apply=True)
    attached(there, lost.volume_id)
    assert any(LEASE in why for _, why in failed), failed
    assert here.audit().clean


@on_the_host
def test_a_lost_device_is_not_made_where_another_is_about_to_leave(san, services, before):
    volumes, here, there = services(True)
    lost, leaving = lose_one_of_two(volumes, here)
    assert (devices(san), lost.device.source.path) == (["/dev/sdb"], "/dev/sda")
    heal_while_another_leaves(lost, leaving, here, there, before)


@on_the_host
def test_a_disk_is_not_given_again_where_another_is_about_to_leave(san, services, before):
    """The host makes its device again, which is lost too."""
    volumes, here, there = services(True)
    lost, leaving = lose_one_of_two(volumes, here)
    here.hosts["compute-1"].guests.forgotten = lost.volume_id
    replug = [finding for finding in there.audit().findings if finding.remedy == "replug"]
    assert len(replug) == 1
    heal_while_another_leaves(lost, leaving, here, there, before, replug)


@on_the_host
def test_what_is_left_over_is_not_ended_under_one_that_comes(san, services, brick, before):
    volumes, here, there = services(True)
    left, wanted = volumes.on_iscsi(1), volumes.on_iscsi(2)
    san.lun(IQN, 1)
    brick.connect(volumes.connections[left])
    refused = []
    before("iscsiadm.*--logout", lambda: refused.append(refusal(there.attach, wanted, instance(), host="compute-1")))
    assert len(here.heal(apply=True).done) == 1
    used = attached(there, wanted)
    assert refused == [LEASE]
    assert devices(san) == [used.device.source.path]
    assert here.audit().clean


@pytest.mark.parametrize("known", [True, False])
@on_the_host
def test_what_is_left_over_is_not_ended_while_another_looks(san, services, brick, before, known):
    """Whether the service still knows of what backend it was or not."""
    volumes, here, there = services(True)
    left, wanted = volumes.on_iscsi(1), volumes.on_iscsi(2)
    san.lun(IQN, 1)
    brick.connect(volumes.connections[left])
    if not known:
        volumes.delete_volume(left)
    failed = []
    before("tee .*/scan", lambda: failed.extend(there.heal(apply=True).failed))
    used = here.attach(wanted, instance(), host="compute-1")
    assert any(LEASE in why for _, why in failed), failed
    assert len(there.heal(apply=True).done) == 1
    assert devices(san) == [attached(here, wanted).device.source.path] == [used.device.source.path]
    assert here.audit().clean


# --- what the volume service says, and what the host's initiator does -------------------------------------------------


@pytest.mark.parametrize(
    ("shared", "service_uuid", "by_itself", "lease"),
    [
        (True, BACKEND, True, LEASE),
        (True, BACKEND, False, None),
        (None, BACKEND, True, LEASE),
        (None, BACKEND, False, LEASE),
        (None, None, True, "target/compute-1/*"),
        (True, None, True, "target/compute-1/*"),
        (False, BACKEND, True, None),
        (False, BACKEND, False, None),
        (False, None, True, None),
    ],
)
@on_the_host
def test_no_device_comes_back_before_its_volume_is_unmapped(
    san, services, monkeypatch, shared, service_uuid, by_itself, lease
):
    """An initiator that scans by itself shows with every login all that is mapped, what was just taken away too.

    os-brick's lock does not cover that; Cinder's three values say where it cannot happen. The connector says what its
    initiator does.
    """
    if by_itself:
        san.fail("parameters", "node.session.scan")
    describe = BrickConnector.describe
    monkeypatch.setattr(BrickConnector, "describe", lambda its: attrs.evolve(describe(its), manual_scan=not by_itself))
    volumes, here, there = services(shared, service_uuid=service_uuid)
    first, second = (volumes.on_iscsi(n, f"{IQN}-{n}" if shared is False else IQN) for n in (1, 2))
    leg, refused = here.attach(first, instance(), host="compute-1"), []
    _failpoints.arm(
        "attach.disconnect.after",
        lambda _: refused.append(refusal(there.attach, second, instance(), host="compute-1")),
    )
    here.detach(leg.id)
    _failpoints.disarm()
    used = attached(there, second)
    assert devices(san) == [used.device.source.path]
    assert refused == [lease]
    assert (there.plan_attach(volumes.on_iscsi(3), instance()).locks[1:] == (lease,)) == (lease is not None)
    assert here.audit().clean
