"""Real Cinder in one process: API, scheduler and a volume service for each back end, over an in-memory message bus.

    python cinder_process.py CONTROL_SOCKET --config-file cinder.conf

Run by Cinder's own environment. Orders come over the control socket, one JSON object a line:

    {"order": "stop-volume"}        the volume service stops; API and scheduler live on and queue messages for it
    {"order": "start-volume"}       it starts again
    {"order": "fault", "method": "initialize_connection", "when": "before" or "after",
     "delay": 3.5, "error": "text or null", "times": 1}     the driver's method waits, then fails, that many times;
                                    a delay of null waits until "heal"
    {"order": "heal"}               forget all faults; what waits goes on
    {"order": "met"}                {method: how often a fault has been met}
    {"order": "calls"}              [[method, volume id], ...]: what was asked of the driver since the last time

SIGTERM ends it.
"""

# ruff: noqa: E402 - nothing may be imported before eventlet has patched the standard library

from cinder import monkey_patch

monkey_patch.patch("eventlet")  # before anything else is imported

import collections
import contextlib
import functools
import json
import os
import signal
import sys
import time
import traceback

import eventlet
import os_brick
from cinder import coordination, exception, objects, privsep, rpc, service, utils, version
from cinder.common import config, constants
from cinder.db import migration
from eventlet import wsgi
from eventlet.green import socket
from eventlet.semaphore import Semaphore
from os_brick import privileged as os_brick_privileged
from oslo_config import cfg
from oslo_log import log
from oslo_privsep import priv_context

WATCHED = (
    "create_volume",
    "delete_volume",
    "extend_volume",
    "create_export",
    "remove_export",
    "initialize_connection",
    "terminate_connection",
)


class Faults:
    """Stands before the driver's methods; without an order it only notes that they were called."""

    def __init__(self):
        self.orders = {}
        self.calls = []
        self.met = {}
        self.healed = 0

    def watch(self, driver):
        """Wrap the methods of a driver instance."""
        for name in WATCHED:
            setattr(driver, name, self._wrap(name, getattr(driver, name)))

    def _wrap(self, name, method):
        @functools.wraps(method)
        def wrapper(*arguments, **named):
            self.calls.append([name, next((item.id for item in arguments if hasattr(item, "name_id")), None)])
            self._act(name, "before")
            answer = method(*arguments, **named)
            self._act(name, "after")
            return answer

        return wrapper

    def _act(self, name, when):
        order = self.orders.get(name)
        if not order or order["when"] != when:
            return
        if order["times"] is not None:
            order["times"] -= 1
            if order["times"] <= 0:
                del self.orders[name]
        self.met[name] = self.met.get(name, 0) + 1
        self._wait(order["delay"])
        if order["error"]:
            raise exception.VolumeBackendAPIException(data=order["error"])

    def _wait(self, delay):
        before = self.healed
        if delay is not None:
            eventlet.sleep(delay)
        while delay is None and self.healed == before:
            eventlet.sleep(0.02)

    def heal(self):
        """Forget the orders and let go of what waits."""
        self.orders.clear()
        self.healed += 1


class Turns:
    """Lets a driver work at the snapshots of a volume one at a time.

    Cinder deletes snapshots of one volume side by side, each with a Ceph client of its own, which then hand the
    image's exclusive lock to and fro while they open and close it. Ceph 16's librbd does not survive that: now and
    then work of an image is pending when it is closed, and the process aborts (`AsyncOpTracker.cc: FAILED
    ceph_assert(m_pending_ops == 0)`).
    """

    def __init__(self):
        self._turns = collections.defaultdict(Semaphore)

    def take(self, driver):
        """Wrap the methods of a driver instance."""
        for name in ("create_snapshot", "delete_snapshot"):
            setattr(driver, name, self._wrap(getattr(driver, name)))

    def _wrap(self, method):
        @functools.wraps(method)
        def wrapper(snapshot):
            with self._turns[snapshot.volume_id]:
                return method(snapshot)

        return wrapper


class Images:
    """An image service: what Cinder asks of Glance about files of a folder, whose names are the images' ids."""

    PROPERTIES = (
        "id", "name", "status", "size", "disk_format", "min_disk", "container_format", "min_ram", "visibility", "owner",
        "tags", "checksum", "created_at", "updated_at",
    )  # fmt: skip

    def __init__(self, port, folder):
        self.port, self.folder = port, folder

    def serve(self):
        """For as long as the process lives."""
        wsgi.server(eventlet.listen(("127.0.0.1", self.port)), self, log_output=False)

    def __call__(self, environ, answer):
        """``GET /v2/images/ID`` and ``/v2/images/ID/file``; and ``/v2/schemas/image``, which the client asks first."""
        if environ["PATH_INFO"].endswith("/versions"):
            return self._json(answer, {"versions": []})
        if environ["PATH_INFO"].startswith("/v2/schemas/"):
            return self._json(answer, {"name": "image", "properties": {name: {} for name in self.PROPERTIES}})
        name, _, rest = environ["PATH_INFO"].removeprefix("/v2/images/").partition("/")
        path = os.path.join(self.folder, name)
        if not os.path.isfile(path):
            answer("404 Not Found", [("Content-Type", "text/plain")])
            return [b"no such image"]
        if rest == "file":
            answer("200 OK", [("Content-Type", "application/octet-stream")])
            with open(path, "rb") as file:
                return [file.read()]
        size = os.path.getsize(path)
        image = {"id": name, "name": name, "status": "active", "size": size, "disk_format": "raw", "min_disk": 0}
        image |= {"container_format": "bare", "min_ram": 0, "visibility": "public", "owner": None, "tags": []}
        image |= {"checksum": None, "created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:00Z"}
        return self._json(answer, image)

    @staticmethod
    def _json(answer, body):
        answer("200 OK", [("Content-Type", "application/json")])
        return [json.dumps(body).encode()]


class Process:
    """The services of one Cinder."""

    def __init__(self):
        self.faults, self.turns = Faults(), Turns()
        self.volumes = []
        self.scheduler = self.api = None

    def start(self):
        """Start everything. The scheduler waits for a first report of a volume service, hence beside them."""
        self.scheduler = service.Service.create(binary=constants.SCHEDULER_BINARY, topic=constants.SCHEDULER_TOPIC)
        self.api = service.WSGIService("osapi_volume")
        starting = eventlet.spawn(self.scheduler.start)
        self.start_volume()
        self.api.start()
        starting.wait()

    def start_volume(self):
        """Start a volume service for each back end."""
        if self.volumes:
            return
        for backend in cfg.CONF.enabled_backends:
            host = f"{cfg.CONF.host}@{backend}"
            volume = service.Service.create(
                binary=constants.VOLUME_BINARY, topic=constants.VOLUME_TOPIC, host=host, service_name=backend
            )
            self.turns.take(volume.manager.driver)
            self.faults.watch(volume.manager.driver)
            volume.start()
            self.volumes.append(volume)
        # A class attribute that the last service to start has set; the clean-up of volume work reads it.
        service.Service.service_id = self.volumes[-1].origin_service_id

    def stop_volume(self):
        """Stop the volume services; what they have begun goes on, what comes later waits for the next start."""
        for volume in self.volumes:
            volume.stop()
        self.volumes = []

    def carry_out(self, order):
        """One order of the control socket."""
        name = order["order"]
        if name == "stop-volume":
            return self.stop_volume()
        if name == "start-volume":
            return self.start_volume()
        if name == "fault":
            if order["method"] not in WATCHED:
                raise ValueError(f"{order['method']} is not one of {', '.join(WATCHED)}")
            self.faults.orders[order["method"]] = order
            self.faults.met.pop(order["method"], None)
            return None
        if name == "heal":
            return self.faults.heal()
        if name == "met":
            return self.faults.met
        if name == "calls":
            calls, self.faults.calls[:] = list(self.faults.calls), []
            return calls
        raise ValueError(f"unknown order {name}")

    def stop(self):
        """Stop everything."""
        for part in (self.api, self.scheduler, *self.volumes):
            part.stop()


def obey(process, path):
    """Serve the control socket."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(8)
    while True:
        connection, _ = listener.accept()
        eventlet.spawn(converse, process, connection)


def converse(process, connection):
    """One client of the control socket."""
    with connection, connection.makefile("rw") as stream:
        for line in stream:
            try:
                answer = {"answer": process.carry_out(json.loads(line))}
            except Exception as failure:
                traceback.print_exc()
                answer = {"error": f"{type(failure).__name__}: {failure}"}
            stream.write(json.dumps(answer) + "\n")
            stream.flush()


def run_without_sudo():
    """What Cinder does as root, it does as whoever runs the tests: its volumes are theirs.

    Else it asks a process that it starts by ``sudo cinder-rootwrap``, which nobody has set up here: a reimage is the
    first to need it, for the RBD driver looks at the image, and writes it over the volume, as root.
    """
    utils.get_root_helper = lambda: "env"
    priv_context.init(root_helper=["env"])
    privsep.sys_admin_pctxt.set_client_mode(False)
    os_brick_privileged.default.set_client_mode(False)


def prepare(arguments):
    """What Cinder's own commands do before they create services."""
    objects.register_all()
    cfg.CONF(arguments, project="cinder", version=version.version_string())
    config.set_middleware_defaults()
    log.setup(cfg.CONF, "cinder")
    run_without_sudo()
    os_brick.setup(cfg.CONF)
    migration.db_sync()
    coordination.COORDINATOR.start()
    rpc.init(cfg.CONF)


def main():
    """Run until SIGTERM."""
    control, *arguments = sys.argv[1:]
    stop = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.append(True))
    with contextlib.suppress(FileNotFoundError):
        os.unlink(control)
    prepare(arguments)
    process = Process()
    process.start()
    port, _, folder = os.environ["CLOUDCORE_IMAGES"].partition(":")
    eventlet.spawn(Images(int(port), folder).serve)
    eventlet.spawn(obey, process, control)
    while not stop:
        time.sleep(0.1)
    process.stop()
    coordination.COORDINATOR.stop()
    os._exit(0)  # worker threads of oslo and tooz would keep the process


main()
