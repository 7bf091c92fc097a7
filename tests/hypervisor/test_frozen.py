"""A guest that can answer nothing, paused or with its QEMU stopped: what is asked of it waits, and ends once it is off.

Whoever asked needs nothing but to ask again; no volume is given back before.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudcore.attach import AttachmentManager, State
from cloudcore.errors import CloudcoreError
from cloudcore.hypervisor import LibvirtHypervisor, Timeouts
from tests.hypervisor.cloud import Compute, EmbeddedCloud, open_embedded_cloud
from tests.waiting import until

pytestmark = [pytest.mark.services, pytest.mark.xdist_group("guests")]
IMPATIENT = Timeouts(detach=3, paused=0.5, change=3, read=3, connect=5, operation=5)


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedCloud]:
    with open_embedded_cloud(f"sqlite:///{tmp_path_factory.mktemp('frozen') / 'journal.db'}", variant="crash") as cloud:
        yield cloud


def freeze(host: Compute, instance: str, how: str) -> None:
    if how == "paused":
        host.guests.domain(instance).suspend()
    else:
        (path,) = Path(host.server.folder).glob(f"run/libvirt/qemu/run/*-{instance[:8]}.pid")
        os.kill(int(path.read_text()), signal.SIGSTOP)


def ask(manager: AttachmentManager, made, verb: str):
    return manager.terminate(made.instance_id) if verb == "terminate" else manager.detach(made.id)


@pytest.mark.parametrize(("how", "verb"), [("paused", "detach"), ("stopped", "terminate")])
def test_it_ends_once_the_guest_is_off(cloud, how, verb):
    (host,) = cloud.hosts.values()
    volume, instance = cloud.volume(), host.guests.define()
    domain = host.guests.domain(instance)
    domain.create()
    with AttachmentManager(cloud.url, cloud.volumes, host.hypervisor) as manager:
        made = manager.attach(volume, instance)
        freeze(host, instance, how)
        with (
            LibvirtHypervisor(host.server.uri, host=host.name, timeouts=IMPATIENT) as impatient,
            AttachmentManager(cloud.url, cloud.volumes, impatient) as hasty,
        ):
            for _ in range(2):
                with contextlib.suppress(CloudcoreError):
                    ask(hasty, made, verb)
                assert hasty.attachment(made.id).state is not State.ABSENT
                assert cloud.status(volume) == "in-use"
        host.guests.kill(instance)
        until(lambda: not domain.isActive())
        ask(manager, made, verb)
        assert manager.attachment(made.id).state is State.ABSENT
        assert cloud.status(volume) == "available"
