"""A real Cinder retypes volumes that a real guest uses: it calls back, as it calls Nova, and is told how that ended."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cloudcore import _failpoints
from cloudcore.attach import AttachmentManager, CinderVolumes, State
from cloudcore.errors import CloudcoreError, Conflict
from cloudcore.hypervisor import LibvirtHypervisor
from cloudcore.problems import problem_of
from cloudcore.schema import create_schema
from tests import services
from tests.hypervisor.cloud import token
from tests.hypervisor.domains import Guests
from tests.waiting import until

pytestmark = [pytest.mark.xdist_group("guests"), pytest.mark.services]

SECOND = "second"


class ComputeApi:
    """The one request that Cinder makes of Nova's API, answered out of a manager."""

    def __init__(self) -> None:
        self.manager: AttachmentManager | None = None
        self.answers: list[int] = []
        self.swaps: list[Future] = []
        self._background = ThreadPoolExecutor(1)
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                _, server, _, volume = self.path.split("/servers")[1].split("/")
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status = api.update(server, volume, body["volumeAttachment"]["volumeId"])
                api.answers.append(status)
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v2.1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def update(self, server: str, volume: str, new_volume: str) -> int:
        assert self.manager is not None
        try:
            plan = self.manager.plan_swap(server, volume, new_volume)
        except CloudcoreError as error:
            return problem_of(error).status
        if not plan.possible:
            return problem_of(plan.violations[0].as_error()).status
        self.swaps.append(self._background.submit(self.manager.swap_volume, server, volume, new_volume))
        return 202

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._background.shutdown()


class Cloud:
    """A Cinder with two back ends and a type for each, a guest, and a manager over both."""

    def __init__(self, api, cinder, volumes, guests, manager):
        self.api, self.cinder, self.volumes, self.guests, self.manager = api, cinder, volumes, guests, manager
        self.client = cinder.client()
        for name, backend in (("slow", "file"), ("fast", SECOND)):
            if all(kind.name != name for kind in self.client.volume_types.list()):
                self.client.volume_types.create(name).set_keys({"volume_backend_name": backend})

    def volume(self, kind="slow"):
        made = self.client.volumes.create(1, volume_type=kind).id
        until(lambda: self.client.volumes.get(made).status != "creating")
        assert self.client.volumes.get(made).status == "available"
        return made

    def retype(self, volume):
        """Ask for it, and wait until Cinder has asked us; the swap that has begun, if any."""
        before = len(self.api.answers)
        self.client.volumes.retype(volume, "fast", "on-demand")
        until(lambda: len(self.api.answers) > before)
        return self.api.swaps[-1] if self.api.answers[-1] == 202 else None

    def told(self, volume):
        """(status, type, back end, migration status) by Cinder."""
        found = self.client.volumes.get(volume).to_dict()
        host = found["os-vol-host-attr:host"].partition("@")[2].partition("#")[0]
        return found["status"], found["volume_type"], host, found["migration_status"]


@pytest.fixture(scope="module")
def cloud(tmp_path_factory) -> Iterator[Cloud]:
    services.require("qemu", "guest", "cinder")
    url = f"sqlite:///{tmp_path_factory.mktemp('journal') / 'attach.db'}"
    create_schema(url, areas=["attach"])
    api, (host,) = ComputeApi(), services.libvirt_hosts(1)
    cinder = services.cinder(
        "file",
        variant="retype",
        **{
            "enabled_backends": f"file,{SECOND}",
            "service_down_time": 3600,  # two back ends in one process report for one only
            f"{SECOND}/volume_driver": "file_driver.FileDriver",
            f"{SECOND}/volume_backend_name": SECOND,
            "nova/auth_type": "none",
            "nova/endpoint": api.url,
        },
    )
    with (
        LibvirtHypervisor(host.uri, host="host-a") as hypervisor,
        CinderVolumes(cinder.session()) as volumes,
        Guests(host) as guests,
        AttachmentManager(url, volumes, hypervisor) as manager,
    ):
        api.manager = manager
        cloud = Cloud(api, cinder, volumes, guests, manager)
        yield cloud
        manager.check()
        hypervisor.check()
        cloud.client.client.session.session.close()
        api.close()
        cinder.kill()


@pytest.fixture(scope="module")
def instance(cloud) -> str:
    return cloud.guests.boot()


@pytest.fixture
def attached(cloud, instance):
    """A volume that the guest has written to: (attachment, device, console, text)."""
    volume, console = cloud.volume(), cloud.guests.console(instance)
    made, text = cloud.manager.attach(volume, instance), token()
    disk = console.wait_disk(volume)
    console.write(disk, 5, text)
    yield made, disk, console, text
    for leg in cloud.manager.attachments(instance_id=instance):
        cloud.manager.detach(leg.id)
    cloud.volumes.delete_volume(volume)


def test_a_volume_in_use_gets_another_type(cloud, instance, attached):
    """On another back end; the guest runs on with its bytes, and the volume keeps its id."""
    made, disk, console, text = attached
    swapped = cloud.retype(made.volume_id).result(120)
    assert (swapped.volume_id, swapped.state) == (made.volume_id, State.ATTACHED)
    assert cloud.told(made.volume_id) == ("in-use", "fast", SECOND, "success")
    assert console.read(disk, 5) == text
    fresh = token()
    console.write(disk, 6, fresh)
    assert console.read(disk, 6) == fresh
    assert [record.id for record in cloud.volumes.attachments(instance_id=instance)] == [swapped.service_id]
    until(lambda: [volume.id for volume in cloud.client.volumes.list()] == [made.volume_id])
    assert cloud.manager.audit().clean


@pytest.mark.parametrize(
    "point", ["attach.swap.copying", "attach.swap.pivoted", "attach.swap.ended", "attach.swap.told"]
)
def test_what_dies_in_the_middle_is_told_to_cinder(cloud, instance, attached, point):
    class Killed(BaseException):
        pass

    def die(_):
        _failpoints.disarm()
        raise Killed

    made, disk, console, text = attached
    _failpoints.arm(point, die)
    try:
        with pytest.raises(Killed):
            cloud.retype(made.volume_id).result(120)
    finally:
        _failpoints.disarm()
    cloud.manager.recover()
    assert cloud.manager.move(instance) is None
    gone_over = point != "attach.swap.copying"
    expected = ("in-use", "fast", SECOND, "success") if gone_over else ("in-use", "slow", "file", "error")
    assert cloud.told(made.volume_id) == expected
    assert console.read(disk, 5) == text
    until(lambda: [volume.id for volume in cloud.client.volumes.list()] == [made.volume_id])
    assert cloud.manager.audit().clean


def test_what_is_refused_is_refused_in_time(cloud, instance, attached, monkeypatch):
    """Cinder removes the new volume, and the old one is as before."""
    made, disk, console, text = attached

    def refuse(*_):
        raise Conflict("not now")

    monkeypatch.setattr(cloud.manager, "plan_swap", refuse)
    assert cloud.retype(made.volume_id) is None
    until(lambda: cloud.told(made.volume_id)[:3] == ("in-use", "slow", "file"))
    until(lambda: [volume.id for volume in cloud.client.volumes.list()] == [made.volume_id])
    assert console.read(disk, 5) == text
