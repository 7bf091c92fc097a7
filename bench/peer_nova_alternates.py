"""Nova's own choice of alternates, on host states made up here; filters and weighers are left out on both sides."""

import sys

sys.path.insert(0, sys.argv[1])
import peer
from nova import conf, objects
from nova.scheduler import host_manager, manager

conf.CONF([], default_config_files=[])
objects.register_all()


class Manager(manager.SchedulerManager):
    def __init__(self):
        pass

    def _get_sorted_hosts(self, spec_obj, host_states, index):
        return host_states


def load(hosts, cells, instances):
    """Hosts h0, h1, ... dealt over the cells in turn; the first ones are selected, one for each instance."""
    global STATES, SELECTED, REQUESTS
    STATES = []
    for number in range(hosts):
        uuid = f"00000000-0000-4000-8000-{number:012}"
        cell = f"00000000-0000-4000-9000-{number % cells:012}"
        state = host_manager.HostState(f"h{number}", f"h{number}", cell)
        state.uuid = uuid
        request = {"allocations": {uuid: {"resources": {"VCPU": 2, "MEMORY_MB": 2048}}}, "mappings": {"": [uuid]}}
        state.allocation_candidates = [request]
        STATES.append(state)
    SELECTED = STATES[:instances]
    REQUESTS = {state.uuid: state.allocation_candidates for state in STATES}
    return len(STATES)


def select(alternates):
    """For each instance the names of its host and of its alternates."""
    chosen = Manager()._get_alternate_hosts(
        SELECTED,
        None,
        STATES,
        len(SELECTED) - 1,
        alternates,
        REQUESTS,
        "1.36",
        [state.allocation_candidates[0] for state in SELECTED],
    )
    return [[selection.service_host for selection in one] for one in chosen]


peer.serve(load=load, select=select)
