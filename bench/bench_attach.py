"""What an attach costs beside the volume service and the hypervisor; and ten instances at one multi-attach volume.

The service and the guests answer at once, from memory, and the time inside of them is taken off: what is left is the
journal, the leases and the state table. SQLite writes with full sync, as it would in service.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.harness import Bench
from bench.options import options
from cloudcore.attach.hosts.guests import MemoryGuests
from cloudcore.attach.lifecycle.states import State
from cloudcore.attach.manager import AttachmentManager
from cloudcore.attach.volumes.embedded import EmbeddedVolumes
from cloudcore.attach.volumes.values import AttachmentStatus, ConnectionInfo, Volume, VolumeAttachment, VolumeFeatures
from cloudcore.database import Database
from cloudcore.schema import create_schema

ROUNDS = 200


class Timed:
    """Passes every call on, and sums up the time of each thread's outermost ones."""

    def __init__(self, target: object) -> None:
        self._target = target
        self._local = threading.local()

    @property
    def host(self) -> str:
        return self._target.host

    def taken(self) -> float:
        """Seconds since the last call of this, in this thread."""
        seconds = getattr(self._local, "seconds", 0.0)
        self._local.seconds = 0.0
        return seconds

    def __getattr__(self, name: str):
        method = getattr(self._target, name)

        def call(*args, **kwargs):
            start = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                self._local.seconds = getattr(self._local, "seconds", 0.0) + time.perf_counter() - start

        return call


class TimedGuests(Timed):
    """Found to be a hypervisor by its methods."""

    def attach_disk(self, *args):
        return self.__getattr__("attach_disk")(*args)

    def detach_disk(self, *args):
        return self.__getattr__("detach_disk")(*args)

    def disk_state(self, *args):
        return self.__getattr__("disk_state")(*args)

    def disk_states(self):
        return self.__getattr__("disk_states")()

    def resize_disk(self, *args):
        return self.__getattr__("resize_disk")(*args)


class Instant:
    """A volume service that knows nothing and agrees to everything."""

    def features(self):
        return VolumeFeatures()

    def volume(self, volume_id):
        return Volume(id=volume_id, status="available", size=2**30, multiattach=True)

    def _record(self, identifier, volume_id, instance_id, status, connection=None):
        return VolumeAttachment(
            id=identifier, volume_id=volume_id, instance_id=instance_id, status=status, connection=connection
        )

    def reserve(self, volume_id, instance_id, *, mode="rw"):
        return self._record(str(uuid.uuid4()), volume_id, instance_id, AttachmentStatus.RESERVED)

    def update(self, attachment_id, connector):
        info = ConnectionInfo("rbd", {"name": "volumes/v", "hosts": ["127.0.0.1"], "ports": ["6789"]})
        return self._record(attachment_id, attachment_id, attachment_id, AttachmentStatus.ATTACHING, info)

    def complete(self, attachment_id):
        pass

    def delete(self, attachment_id):
        pass


def own_overhead(bench: Bench, folder: Path) -> None:
    database = Database(f"sqlite:///{folder / 'journal.db'}")
    create_schema(database, areas=["attach"])
    volumes, guests = Timed(Instant()), TimedGuests(MemoryGuests())
    attach, detach, cpu = [], [], {"attach": [], "detach": []}
    with AttachmentManager(database, volumes, guests) as manager:
        for number in range((20 if bench.quick else ROUNDS) + 20):
            for verb, sink in (("attach", attach), ("detach", detach)):
                volumes.taken(), guests.taken()
                start, worked = time.perf_counter(), time.thread_time()
                if verb == "attach":
                    made = manager.attach(str(uuid.uuid4()), str(uuid.uuid4()))
                else:
                    made = manager.detach(made.id)
                own = time.perf_counter() - start - volumes.taken() - guests.taken()
                if number >= 20:
                    sink.append(own)
                    cpu[verb].append(time.thread_time() - worked)
            assert made.state is State.ABSENT
    commit = commit_time(database)
    database.close()
    for verb, seconds in (("attach", attach), ("detach", detach)):
        median = statistics.median(seconds)
        spread = f"{min(seconds) * 1000:.2f} to {sorted(seconds)[int(0.95 * len(seconds))] * 1000:.2f} ms (95 %)"
        bench.record(
            f"own overhead of an {verb}, SQLite with full sync, ms"
            if verb == "attach"
            else "own overhead of a detach, ms",
            ours=round(median * 1000, 3),
            must=5.0 if verb == "attach" else None,
            met=median <= 0.005 if verb == "attach" else None,
            note=f"{spread}; {statistics.median(cpu[verb]) * 1000:.2f} ms of it on the processor; "
            f"an empty commit takes {commit * 1000:.2f} ms here",
        )


def commit_time(database: Database) -> float:
    """What one small transaction costs on this disk."""
    times = []
    for number in range(50):
        start = time.perf_counter()
        with database.write() as connection:
            connection.exec_driver_sql(
                "INSERT INTO attachment_locks (name, owner, expires) VALUES (?, 'bench', 0)", (f"bench/{number}",)
            )
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def concurrent_instances(bench: Bench, folder: Path) -> None:
    """Ten threads, one volume: they queue, because a volume service reserves one at a time."""
    database = Database(f"sqlite:///{folder / 'shared.db'}")
    create_schema(database, areas=["attach"])
    embedded = EmbeddedVolumes(database)
    rates = []
    with AttachmentManager(database, embedded) as manager, ThreadPoolExecutor(10) as pool:
        for _ in range(7):
            volume = embedded.create_volume(multiattach=True).id
            start = time.perf_counter()
            made = list(pool.map(lambda _, volume=volume: manager.attach(volume, str(uuid.uuid4())), range(10)))
            rates.append(10 / (time.perf_counter() - start))
            assert len(embedded.attachments(volume_id=volume)) == 10
            for leg in made:
                manager.detach(leg.id)
        assert manager.audit().clean
    database.close()
    bench.record(
        "ten concurrent instances on one multi-attach volume, attaches/s",
        ours=round(statistics.median(rates), 1),
        note=f"{min(rates):.1f} to {max(rates):.1f}; embedded volumes in the same SQLite file, full sync",
    )


def main() -> None:
    with Bench("attach", options()) as bench, tempfile.TemporaryDirectory() as name:
        own_overhead(bench, Path(name))
        concurrent_instances(bench, Path(name))


if __name__ == "__main__":
    main()
