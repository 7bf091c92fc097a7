"""Nova 34's own reading of flavors and images, in a process of its own: the queries that its scheduler sends.

`query` goes the way of nova-api and nova-scheduler: the API's checks (`hardware.numa_get_constraints`), ports and PCI
aliases as request groups, the request filters that need no database, then `resources_from_request_spec`.
"""

import json
import logging
import os
import sys

sys.path.insert(0, sys.argv[1])

os.environ.setdefault("OS_NOVA_DISABLE_EVENTLET_PATCHING", "1")

import peer

logging.disable(logging.CRITICAL)

from nova import config, objects  # noqa: E402
from nova.accelerator import cyborg  # noqa: E402
from nova.pci import request as pci_request  # noqa: E402
from nova.scheduler import filters, request_filter, utils, weights  # noqa: E402
from nova.scheduler.filters import extra_specs_ops  # noqa: E402
from nova.virt import hardware  # noqa: E402

CONF = config.CONF
objects.register_all()
# Request filters that ask neither Nova's databases nor Neutron.
FILTERS = (
    request_filter.require_image_type_support,
    request_filter.compute_status_filter,
    request_filter.transform_image_metadata,
    request_filter.accelerators_filter,
    request_filter.packed_virtqueue_filter,
    request_filter.ephemeral_encryption_filter,
    request_filter.virtio_sound_filter,
    request_filter.tpm_secret_security_filter,
)


class _Numbers:
    """In place of random uuids: the names that the other side gives to PCI requests."""

    def __init__(self):
        self.count = 0

    def generate_uuid(self):
        self.count += 1
        return f"pci{self.count - 1}"


def configure(aliases):
    """Read the options' defaults, with these PCI aliases and all that is optional switched on."""
    CONF([], project="nova", default_config_files=[])
    CONF.set_override("alias", [json.dumps(alias) for alias in aliases], group="pci")
    CONF.set_override("pci_in_placement", True, group="filter_scheduler")
    CONF.set_override("image_metadata_prefilter", True, group="scheduler")
    CONF.set_override("query_placement_for_image_type_support", True, group="scheduler")
    return sorted(pci_request.get_alias_from_config())


def query(flavor, image=None, ports=(), profile=(), boot_from_volume=False):
    """The query to Placement, or {"refused": why} where Nova refuses the server."""
    try:
        return {"query": _query(flavor, image, ports, profile, boot_from_volume)}
    except Exception as error:
        return {"refused": f"{type(error).__name__}: {error}"}


def _query(words, image, ports, profile, boot_from_volume):
    flavor = objects.Flavor(
        name=words["name"],
        vcpus=words["vcpus"],
        memory_mb=words["ram"],
        root_gb=words["disk"],
        ephemeral_gb=words["OS-FLV-EXT-DATA:ephemeral"],
        swap=words["swap"] or 0,
        extra_specs=words["extra_specs"],
    )
    fields = {"id", "name", "disk_format"}
    given = {key: value for key, value in (image or {}).items() if key in fields}
    given["properties"] = {key: value for key, value in (image or {}).items() if key not in fields}
    meta = objects.ImageMeta.from_dict(given)
    meta.name = given.get("name", "image")
    if "disk_format" not in given:
        meta.disk_format = "no-such"
    hardware.numa_get_constraints(flavor, meta)
    affinity = hardware.get_pci_numa_policy_constraint(flavor, meta)
    pci_request.uuidutils = _Numbers()
    groups, params = [], objects.RequestLevelParams()
    for port in ports:
        wanted = port["resource_request"]
        if "request_groups" in wanted:
            groups += objects.RequestGroup.from_extended_port_request(None, wanted)
        else:
            groups.append(objects.RequestGroup.from_port_request(None, port["id"], wanted))
        params.extend_with(objects.RequestLevelParams.from_port_request(wanted))
    if profile:
        groups += cyborg._CyborgClient.get_device_request_groups(None, profile, owner=None)
    spec = objects.RequestSpec(
        flavor=flavor,
        image=meta,
        is_bfv=boot_from_volume,
        requested_resources=groups,
        request_level_params=params,
        pci_requests=pci_request.get_pci_requests_from_flavor(flavor, affinity_policy=affinity),
        num_instances=1,
    )
    spec.generate_request_groups_from_pci_requests()
    for each in FILTERS:
        each(None, spec)
    request = utils.resources_from_request_spec(None, spec, host_manager=None)
    request._limit = None
    return request.to_querystring()


def queries(cases):
    """`query` of each of these keyword arguments."""
    return [query(**case) for case in cases]


def matches(pairs):
    """Whether each (value, requirement) matches by the operators of extra specs; None where Nova raises."""
    return [_matches(*pair) for pair in pairs]


def _matches(value, requirement):
    try:
        return bool(extra_specs_ops.match(value, requirement))
    except Exception:
        return None


def names():
    """The filters, request filters and weighers that Nova brings along."""
    found = [*filters.all_filters(), *weights.all_weighers(), *request_filter.ALL_REQUEST_FILTERS]
    return [each.__name__ for each in found]


if __name__ == "__main__":
    peer.serve(configure=configure, query=query, queries=queries, matches=matches, names=names)
