"""Move a running guest with its multi-attach volume to another host: ledger, volumes and hypervisor together.

Run it with ``python examples/live_migration.py``: two hosts in memory, nothing else needed. With libvirt, the step that
moves the guest is ``source.migrate(instance, destination, disks=disks, ...)``; the rest stays as it is.

The order is what keeps it safe. At every point somebody who looks finds the truth: what the source holds is held by the
migration until the guest has arrived, and both hosts may open the volume only while both have to.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence

from cloudcore import AllocationLedger, AttachmentManager, PlacementTree, create_schema, open_engine
from cloudcore.attach import Attachment, EmbeddedVolumes
from cloudcore.disks import Disk
from cloudcore.hypervisor import HostPolicy, MemoryHypervisor, sync
from cloudcore.placement import Candidate


def live_migrate(
    instance: str,
    destination: str,
    candidate: Candidate,
    *,
    ledger: AllocationLedger,
    manager: AttachmentManager,
    move_guest: Callable[[Sequence[Disk]], None],
    look: Callable[[str], None] = lambda stage: None,
) -> tuple[Attachment, ...]:
    """Move *instance* to *candidate*, which is on the host *destination*; whatever fails is taken back."""
    migration = str(uuid.uuid4())
    ledger.begin_move(instance, migration, candidate, kind="live")  # the migration holds the source from now on
    try:
        move = manager.begin_move(instance, destination, kind="live")  # the destination may open the volumes, too
        look("before")
        move_guest(move.disks)
    except Exception:
        if manager.move(instance) is not None:
            manager.revert_move(instance)
        ledger.revert_move(migration)
        raise
    look("during")
    attachments = manager.confirm_move(instance)  # refuses unless the guest runs at the destination
    ledger.confirm_move(migration)  # and only now the source is free
    look("after")
    return attachments


def main() -> None:
    """Two hosts in memory, one volume, one move."""
    engine = open_engine("sqlite://")
    create_schema(engine)
    hosts = {name: MemoryHypervisor(name) for name in ("cn1", "cn2")}
    volumes = EmbeddedVolumes(engine)
    with (
        PlacementTree.open(engine) as tree,
        AllocationLedger(engine) as ledger,
        AttachmentManager(engine, volumes, hosts.values()) as manager,
    ):
        for name, hypervisor in hosts.items():
            sync(tree, hypervisor.facts(), HostPolicy(name=name))
        query = "resources=VCPU:2,MEMORY_MB:2048&in_tree="
        instance = str(uuid.uuid4())
        ledger.claim(instance, next(iter(tree.candidates(query + tree["cn1"].uuid))), project_id="p", user_id="u")
        hosts["cn1"].add_guest(instance)
        volume = volumes.create_volume(multiattach=True)
        manager.attach(volume.id, instance, host="cn1")

        def look(stage: str) -> None:
            tree.refresh()
            used = {name: sum(tree.usage(cell).get("VCPU", 0) for cell in tree.subtree(name)) for name in hosts}
            legs = sorted(leg.host or "" for leg in manager.attachments(volume_id=volume.id))
            print(f"{stage:7} VCPU in use {used}, volume on {legs}")

        look("first")
        target = next(iter(tree.candidates(query + tree["cn2"].uuid)))
        live_migrate(
            instance,
            "cn2",
            target,
            ledger=ledger,
            manager=manager,
            move_guest=lambda disks: hosts["cn1"].migrate(instance, hosts["cn2"]),
            look=look,
        )
        ledger.check()
        manager.check()


if __name__ == "__main__":
    main()
