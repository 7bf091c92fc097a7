"""Flavors, images and ports become the request that Nova 34's own scheduler sends to Placement."""

from __future__ import annotations

import random
import subprocess
from typing import Any

import pytest

from bench.harness import HERE, REPOSITORY, Peer, peer_env
from cloudcore.errors import InvalidRequest, UnhonouredRequest
from cloudcore.placement import FlavorRules, PciAlias, PlacementTree, ResourceRequest, Unhonoured

ALIASES = [
    {"name": "gpu", "vendor_id": "10de", "product_id": "1eb8", "device_type": "type-PCI"},
    {"name": "fpga", "resource_class": "my-fpga", "traits": "HW_NIC_SRIOV,custom_bitstream,red card"},
    {"name": "near", "resource_class": "CUSTOM_NEAR", "numa_policy": "required"},
]
PROFILE = [{"resources:FPGA": "1", "trait:CUSTOM_FPGA_INTEL": "required"}, {"resources:PGPU": "2"}]
RULES = FlavorRules(aliases=ALIASES, device_profiles={"acc": PROFILE})

pytestmark = pytest.mark.xdist_group("nova-flavors")


@pytest.fixture(scope="module")
def nova():
    """A process in Nova's own environment, which is built when it is missing."""
    try:
        python = peer_env("nova")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no environment with nova can be made: {error.stderr}")
    with Peer(python, HERE / "peer_nova_flavors.py") as process:
        process.call("configure", aliases=ALIASES)()
        yield process


def flavor(vcpus: int = 4, ram: int = 4096, disk: int = 20, **extra_specs: str) -> dict[str, Any]:
    """A flavor as Nova's API gives it."""
    return {
        "name": "m1",
        "vcpus": vcpus,
        "ram": ram,
        "disk": disk,
        "OS-FLV-EXT-DATA:ephemeral": 0,
        "swap": "",
        "extra_specs": {key.replace("__", ":"): value for key, value in extra_specs.items()},
    }


def test_the_table_of_filters_and_weighers_names_all_of_novas(nova) -> None:
    tables = (REPOSITORY / "docs/reference/alternates.md").read_text()
    names = nova.run("names")
    assert len(names) > 40
    assert [name for name in names if name not in tables] == []


# Each word with what a deployment may write there; the last ones are wrong.
FLAVOR_WORDS: dict[str, list[str]] = {
    "resources:VCPU": ["0", "4", "8"],
    "resources:PCPU": ["4", "5", "2"],
    "resources:MEMORY_MB": ["0", "512"],
    "resources:DISK_GB": ["0", "7", "x"],
    "resources:CUSTOM_BAREMETAL_GOLD": ["1", "-1"],
    "resources:NO_SUCH_CLASS": ["1"],
    "resources1:VGPU": ["1"],
    "resources_FAST:SRIOV_NET_VF": ["2"],
    "resources2:CUSTOM_X": ["1", "0"],
    "trait:HW_CPU_X86_AVX2": ["required", "forbidden", "maybe"],
    "trait:HW_CPU_HYPERTHREADING": ["required", "forbidden"],
    "trait1:CUSTOM_RED": ["required"],
    "trait_FAST:CUSTOM_PHYSNET_A": ["required", "forbidden"],
    "trait:NO_SUCH_TRAIT": ["required"],
    "group_policy": ["none", "isolate", "sometimes"],
    "hw:cpu_policy": ["dedicated", "dedicated", "shared", "mixed", "mixed", "often"],
    "hw:cpu_thread_policy": ["isolate", "require", "prefer", "tangle"],
    "hw:emulator_threads_policy": ["isolate", "share", "wild"],
    "hw:cpu_dedicated_mask": ["1-2", "^0", "0-3", "0,^0", "7", "a"],
    "hw:cpu_realtime": ["yes", "no"],
    "hw:cpu_realtime_mask": ["^0", "1-2", "2-1"],
    "hw:numa_nodes": ["1", "2", "3", "x"],
    "hw:mem_page_size": ["large", "small", "any", "2048", "1GB", "2MiB", "huge"],
    "hw:locked_memory": ["true", "false"],
    "hw:mem_encryption": ["true", "false"],
    "hw:mem_encryption_model": ["amd-sev", "amd-sev-es", "amd-sev-snp", "intel-tdx", "rot13"],
    "hw:pmem": ["6GB", "6GB, 6GB,16-gb", ","],
    "hw:pci_numa_affinity_policy": ["socket", "required", "preferred", "legacy", "near"],
    "hw:tpm_version": ["1.2", "2.0", "3"],
    "hw:tpm_model": ["tpm-tis", "tpm-crb", "tpm"],
    "hw:tpm_secret_security": ["user", "host", "deployment"],
    "hw:maxphysaddr_mode": ["passthrough", "emulate", "both"],
    "hw:virtio_packed_ring": ["true", "false"],
    "hw:sound_model": ["virtio", "ich9", "horn"],
    "hw:ephemeral_encryption": ["true", "false"],
    "hw:ephemeral_encryption_format": ["luks", "plain"],
    "hw:cpu_sockets": ["2"],
    "quota:disk_read_bytes_sec": ["1000"],
    "os:secure_boot": ["required", "optional", "disabled", "never"],
    "pci_passthrough:alias": ["gpu:1", "gpu:2,fpga:1", "near:3", "fpga:x"],
    "aggregate_instance_extra_specs:ssd": ["true"],
    "capabilities:cpu_info:vendor": ["Intel"],
    "colour": ["green"],
}
IMAGE_WORDS: dict[str, list[str]] = {
    "disk_format": ["qcow2", "raw", "iso"],
    "trait:HW_CPU_X86_VMX": ["required", "forbidden"],
    "trait:HW_CPU_HYPERTHREADING": ["required"],
    "hw_disk_bus": ["virtio", "scsi", "sata"],
    "hw_cdrom_bus": ["ide", "usb"],
    "hw_video_model": ["virtio", "none", "qxl"],
    "hw_vif_model": ["e1000", "virtio", "ne2k_pci"],
    "hw_architecture": ["x86_64", "aarch64"],
    "architecture": ["amd64", "i586"],
    "hw_emulation_architecture": ["ppc64le"],
    "hw_viommu_model": ["intel", "auto"],
    "vmware_adaptertype": ["ide", "lsiLogic"],
    "hw_cpu_policy": ["dedicated", "shared", "mixed"],
    "hw_cpu_thread_policy": ["isolate", "require"],
    "hw_cpu_realtime_mask": ["^0-1"],
    "hw_mem_page_size": ["2048", "large"],
    "hw_numa_nodes": ["2"],
    "hw_mem_encryption": ["true", "false"],
    "hw_mem_encryption_model": ["amd-sev-es"],
    "hw_firmware_type": ["uefi", "uefi", "bios"],
    "hw_firmware_stateless": ["true", "false"],
    "hw_machine_type": ["pc-q35-8.0", "pc"],
    "hw_tpm_version": ["2.0"],
    "hw_tpm_model": ["tpm-crb"],
    "hw_pci_numa_affinity_policy": ["socket", "required"],
    "hw_maxphysaddr_mode": ["emulate"],
    "hw_virtio_packed_ring": ["true"],
    "hw_sound_model": ["virtio"],
    "hw_ephemeral_encryption": ["true"],
    "hw_ephemeral_encryption_format": ["luks"],
    "os_secure_boot": ["required"],
    "hw_locked_memory": ["true"],
    "img_hv_type": ["kvm"],
    "os_distro": ["debian"],
}


# Words that mean something only together.
THEMES: list[dict[str, list[str]]] = [
    {"hw:cpu_policy": ["dedicated"], "hw:emulator_threads_policy": ["isolate", "share"]},
    {"hw:cpu_policy": ["dedicated"], "hw:cpu_thread_policy": ["isolate", "require"], "hw:numa_nodes": ["1", "2"]},
    {"hw:cpu_policy": ["mixed"], "hw:cpu_dedicated_mask": FLAVOR_WORDS["hw:cpu_dedicated_mask"]},
    {
        "hw:cpu_policy": ["mixed", "dedicated"],
        "hw:cpu_realtime": ["yes"],
        "hw:cpu_realtime_mask": FLAVOR_WORDS["hw:cpu_realtime_mask"],
        "hw:emulator_threads_policy": ["isolate"],
    },
    {"resources:PCPU": ["4", "5"], "hw:emulator_threads_policy": ["isolate", "share"]},
    {"hw:tpm_version": ["1.2", "2.0"], "hw:tpm_model": ["tpm-tis", "tpm-crb"]},
    {"hw:mem_page_size": ["large", "2048"], "hw:locked_memory": ["true", "false"]},
    {"hw:ephemeral_encryption": ["true"], "hw:ephemeral_encryption_format": ["luks", "plain"]},
    {"resources1:VGPU": ["1"], "resources2:VGPU": ["1"], "group_policy": ["none", "isolate"]},
]
ENCRYPTED = {
    "hw_mem_encryption": ["true"],
    "hw_mem_encryption_model": ["amd-sev", "amd-sev-snp", "intel-tdx"],
    "hw_firmware_type": ["uefi", "uefi", "bios"],
    "hw_firmware_stateless": ["true", "false"],
    "hw_video_model": ["none", "virtio"],
}


def port(rng: random.Random, number: int) -> dict[str, Any]:
    """A port with quality of service, in one of Neutron's two forms."""
    ids = [f"{number:08x}-0000-4000-8000-{part:012x}" for part in range(3)]
    bandwidth = {"resources": {"NET_BW_IGR_KILOBIT_PER_SEC": 1000}, "required": ["CUSTOM_PHYSNET_A"]}
    if rng.random() < 0.5:
        return {"id": ids[0], "resource_request": bandwidth}
    packets = {"id": ids[1], "resources": {"NET_PACKET_RATE_KILOPACKET_PER_SEC": 10}, "required": []}
    groups = [packets, {"id": ids[2], **bandwidth}]
    return {"id": ids[0], "resource_request": {"request_groups": groups, "same_subtree": ids[1:]}}


def case(seed: int) -> dict[str, Any]:
    """A server to be made. Most words are right, few stand together, so that most cases can be served."""
    rng = random.Random(seed)
    words = flavor(rng.choice([2, 4, 4, 8]), rng.choice([512, 4096]), rng.choice([0, 20]))
    words["OS-FLV-EXT-DATA:ephemeral"] = rng.choice([0, 0, 5])
    words["swap"] = rng.choice(["", 512, 1025])
    for key in rng.sample(sorted(FLAVOR_WORDS), rng.choice([0, 1, 2, 2, 3, 4])):
        words["extra_specs"][key] = rng.choice(FLAVOR_WORDS[key])
    if rng.random() < 0.15:
        words["extra_specs"] |= {"hw:numa_nodes": "2", "hw:numa_cpus.0": "0", "hw:numa_mem.0": "256"}
        rest = ",".join(map(str, range(1, words["vcpus"])))
        words["extra_specs"] |= {"hw:numa_cpus.1": rest, "hw:numa_mem.1": str(words["ram"] - 256)}
    image = {key: rng.choice(IMAGE_WORDS[key]) for key in rng.sample(sorted(IMAGE_WORDS), rng.choice([0, 0, 1, 2, 4]))}
    if rng.random() < 0.4:
        words["extra_specs"] |= {key: rng.choice(values) for key, values in rng.choice(THEMES).items()}
    if rng.random() < 0.1:
        image |= {key: rng.choice(values) for key, values in ENCRYPTED.items()}
    profile = PROFILE if rng.random() < 0.1 else []
    if profile:
        words["extra_specs"]["accel:device_profile"] = "acc"
    ports = [port(rng, number) for number in range(rng.choice([0, 0, 0, 1, 2]))]
    return {
        "flavor": words,
        "image": image,
        "ports": ports,
        "profile": profile,
        "boot_from_volume": rng.random() < 0.2,
    }


def read(given: dict[str, Any]) -> tuple[ResourceRequest | str, list[Unhonoured]]:
    """What we make of a case: the request or why it is refused, and what it does not carry."""
    left_out: list[Unhonoured] = []
    arguments = {key: given[key] for key in ("flavor", "image", "ports", "boot_from_volume")}
    try:
        return ResourceRequest.from_flavor(**arguments, rules=RULES, on_unhonoured=left_out.append), left_out
    except InvalidRequest as error:
        return f"{error.field}: {error}", left_out


def theirs(answer: dict[str, str]) -> ResourceRequest | str:
    """The request in Nova's query, or why there is none: Nova refuses, or Placement would."""
    if "refused" in answer:
        return answer["refused"]
    try:
        return ResourceRequest.from_query(answer["query"])
    except InvalidRequest as error:
        return f"Placement: {error}"


def without(given: dict[str, Any], left_out: list[Unhonoured]) -> dict[str, Any]:
    """The case without the image's words that have no trait: Nova drops all the others with them."""
    names = {word.name for word in left_out if word.source == "image" and word.reason.startswith("no trait")}
    return given | {"image": {key: value for key, value in given["image"].items() if key not in names}}


def test_generated_flavors_give_the_query_that_nova_sends(nova, request) -> None:
    number = 15_000 if request.config.getoption("--long") else 1_500
    cases = [case(seed) for seed in range(number)]
    ours = [read(given) for given in cases]
    asked = [without(given, left_out) for given, (_, left_out) in zip(cases, ours, strict=True)]
    served = refused = 0
    for given, (mine, left_out), answer in zip(cases, ours, nova.call("queries", cases=asked)(), strict=True):
        other = theirs(answer)
        if isinstance(mine, ResourceRequest) and isinstance(other, ResourceRequest):
            assert mine == other, (given, mine.to_query(), answer)
            served += 1
        else:
            assert isinstance(mine, str), (given, answer, left_out)
            assert isinstance(other, str), (given, mine, answer)
            refused += 1
    assert served >= number // 3, (served, refused)
    assert refused >= number // 10, (served, refused)


def test_what_cannot_be_carried_is_refused_with_all_of_it_or_listed() -> None:
    words = flavor(colour="green", aggregate_instance_extra_specs__ssd="true", hw__numa_nodes="2")
    image = {"img_hv_type": "kvm", "hw_disk_bus": "teleport"}
    with pytest.raises(UnhonouredRequest) as caught:
        ResourceRequest.from_flavor(words, image)
    listed: list[Unhonoured] = []
    request = ResourceRequest.from_flavor(words, image, on_unhonoured=listed.append)
    assert tuple(listed) == caught.value.unhonoured
    assert {(word.source, word.name) for word in listed} == {
        ("flavor", "colour"),
        ("flavor", "aggregate_instance_extra_specs:ssd"),
        ("flavor", "hw:numa_nodes"),
        ("image", "img_hv_type"),
        ("image", "hw_disk_bus"),
    }
    assert all(word.reason and word.name in str(caught.value) for word in listed)
    assert request == ResourceRequest.from_flavor(flavor())


def test_words_that_filters_of_the_caller_judge_are_no_fault() -> None:
    rules = FlavorRules(judged_elsewhere=["aggregate_instance_extra_specs:*", "img_hv_*"])
    words = flavor(aggregate_instance_extra_specs__ssd="true")
    assert ResourceRequest.from_flavor(words, {"img_hv_type": "kvm"}, rules=rules)
    with pytest.raises(UnhonouredRequest, match="colour"):
        ResourceRequest.from_flavor(flavor(colour="green"), rules=rules)


@pytest.mark.parametrize(
    "name",
    [
        *("hw:cpu_policies", "hw:cpu_thread_policy_", "hw:mem_page_size:0", "hw:pmem2", "hw:tpm_models"),
        *("hw:numa_nodes.0", "hw:numa_cpus.0.1", "os:secure_boot_mode", "pci_passthrough:aliases"),
        *("accel:device_profiles", "hw:boot_menu_timeout", "hide_hypervisor_ids"),
    ],
)
def test_a_word_that_only_begins_like_a_known_one_is_named(name: str) -> None:
    with pytest.raises(UnhonouredRequest) as caught:
        ResourceRequest.from_flavor(flavor() | {"extra_specs": {name: "1"}})
    assert [word.name for word in caught.value.unhonoured] == [name]


CELLS_OF_ONE = {"hw:numa_nodes": "1", "hw:numa_cpus.0": "0-3", "hw:numa_mem.0": "4096"}


@pytest.mark.parametrize(
    ("words", "unread"),
    [
        ({"hw:numa_cpus.0": "0-3", "hw:numa_mem.0": "4096"}, ["hw:numa_cpus.0", "hw:numa_mem.0"]),
        ({"hw:numa_nodes": "2", "hw:numa_mem.1": "1024"}, ["hw:numa_mem.1"]),
        (CELLS_OF_ONE | {"hw:numa_cpus.2": "4"}, ["hw:numa_cpus.2"]),
        (CELLS_OF_ONE, []),
    ],
    ids=["no cells", "no first", "a gap", "all"],
)
def test_words_of_cells_that_nothing_reads_are_named(words: dict[str, str], unread: list[str]) -> None:
    left_out: list[Unhonoured] = []
    asked = flavor() | {"extra_specs": words}
    ResourceRequest.from_flavor(asked, rules=FlavorRules(numa=True), on_unhonoured=left_out.append)
    assert [word.name for word in left_out] == unread


@pytest.mark.parametrize("value", ["yes", "", "REQUIRED", "0"])
def test_a_misspelt_word_of_a_trait_is_not_dropped(value: str) -> None:
    with pytest.raises(UnhonouredRequest, match="trait:HW_CPU_X86_AVX2"):
        ResourceRequest.from_flavor(flavor(trait__HW_CPU_X86_AVX2=value))


def test_a_flavor_may_be_an_object_with_novas_own_names() -> None:
    class Flavor:
        name, vcpus, memory_mb, root_gb, ephemeral_gb, swap = "m1", 4, 4096, 20, 0, 0
        extra_specs = {"hw:cpu_policy": "dedicated"}

    assert ResourceRequest.from_flavor(Flavor()) == ResourceRequest.from_flavor(flavor(hw__cpu_policy="dedicated"))


@pytest.mark.parametrize("wrong", [None, "m1", 7, {}, {"vcpus": 0, "ram": 1}, {"vcpus": 1}, {"vcpus": True, "ram": 5}])
def test_what_is_no_flavor_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidRequest):
        ResourceRequest.from_flavor(wrong)


@pytest.mark.parametrize(
    "words",
    [
        {"hw:cpu_policy": "mixed", "hw:cpu_dedicated_mask": "0-99999999999"},
        {"hw:numa_nodes": "9" * 4000},
        {"hw:numa_nodes": "1000000000"},
        {"pci_passthrough:alias": "gpu:1000000000"},
        {"pci_passthrough:alias": "gpu:999,near:999"},
        {"hw:mem_page_size": "9" * 4000},
        {"hw:mem_page_size": "9" * 400 + "KB"},
        {"hw:mem_page_size": "0." + "9" * 400 + "QiB"},
        {"hw:mem_page_size": "8QB"},
        {"resources:VCPU": "9" * 4000},
    ],
    ids=lambda words: next(reversed(words)),
)
def test_large_numbers_cost_nothing(words: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest):
        ResourceRequest.from_flavor(flavor() | {"extra_specs": words}, rules=RULES)


@pytest.mark.parametrize(
    "aliases",
    [
        [{"name": "gpu", "resource_class": "PGPU", "traits": 5}],
        [{"name": "gpu", "resource_class": "PGPU", "traits": ["CUSTOM_A", None]}],
        [{"name": "gpu", "resource_class": "PGPU", 5: 1, "numa": 1}],
        "gpu",
        [{"name": "gpu"}],
        ["{"],
        [{"name": "gpu", "resource_class": "PGPU", "numa": 1}],
        [{"name": "gpu", "resource_class": "PGPU"}] * 2,
        [{"name": "gpu", "resource_class": "PGPU", "numa_policy": "close"}],
        [7],
    ],
)
def test_a_wrong_alias_is_refused_when_the_rules_are_made(aliases: Any) -> None:
    with pytest.raises(InvalidRequest):
        FlavorRules(aliases=aliases)


def test_aliases_are_read_as_in_the_configuration_file() -> None:
    written = '{"vendor_id": "8086", "product_id": "1572", "name": "nic", "numa_policy": "required"}'
    expected = PciAlias(name="nic", resource_class="CUSTOM_PCI_8086_1572", numa_policy="required")
    assert FlavorRules(aliases=[written]).aliases["nic"] == expected


def numa_tree() -> PlacementTree:
    """Two hosts of two NUMA cells, each cell with a GPU; on the second host both hang below the first cell."""
    tree = PlacementTree()
    for host, beneath in (("cn1", (0, 1)), ("cn2", (0, 0))):
        tree.add(host, inventory={"DISK_GB": 1000})
        for cell in range(2):
            tree.add(
                f"{host}-numa{cell}",
                parent=host,
                traits={"HW_NUMA_ROOT"},
                inventory={"VCPU": 8, "PCPU": 8, "MEMORY_MB": 8192, "CUSTOM_MEMORY_MB_PAGES_2M": 4096},
            )
        for gpu, cell in enumerate(beneath):
            tree.add(f"{host}-gpu{gpu}", parent=f"{host}-numa{cell}", inventory={"CUSTOM_PCI_10DE_1EB8": 1})
    return tree


def test_cells_of_the_guest_become_groups_below_the_hosts_cells() -> None:
    rules = FlavorRules(numa=True)
    words = flavor(8, 6144, hw__numa_nodes="2", hw__cpu_policy="dedicated", hw__emulator_threads_policy="isolate")
    request = ResourceRequest.from_flavor(words, rules=rules)
    assert request.groups["numa0"].resources == {"PCPU": 5, "MEMORY_MB": 3072}
    assert request.groups["numa1"].resources == {"PCPU": 4, "MEMORY_MB": 3072}
    assert request.groups[""].resources == {"DISK_GB": 20}
    assert request.group_policy == "isolate"
    tree = numa_tree()
    for candidate in tree.candidates(request):
        used = [tree[uuid].name for suffix in ("numa0", "numa1") for uuid in candidate.mappings[suffix]]
        assert len(set(used)) == 2
    assert {candidate.host.name for candidate in tree.candidates(request)} == {"cn1", "cn2"}


def test_a_device_is_kept_near_the_only_cell() -> None:
    rules = FlavorRules(numa=True, aliases=ALIASES)
    words = flavor(hw__cpu_policy="dedicated", hw__pci_numa_affinity_policy="required", pci_passthrough__alias="gpu:2")
    request = ResourceRequest.from_flavor(words, rules=rules)
    tree = numa_tree()
    found = list(tree.candidates(request))
    assert {candidate.host.name for candidate in found} == {"cn2"}  # no cell of cn1 has two
    assert {tree[candidate.mappings["numa0"][0]].name for candidate in found} == {"cn2-numa0"}
    two_cells = flavor(hw__numa_nodes="2", hw__pci_numa_affinity_policy="required", pci_passthrough__alias="gpu:1")
    with pytest.raises(UnhonouredRequest, match="hw:pci_numa_affinity_policy"):
        ResourceRequest.from_flavor(two_cells, rules=rules)


def test_huge_pages_come_from_their_own_class() -> None:
    from cloudcore.hypervisor import page_class

    words = flavor(ram=4096, hw__mem_page_size="2MB")
    request = ResourceRequest.from_flavor(words, rules=FlavorRules(numa=True, page_class=page_class))
    assert request.groups["numa0"].resources == {"VCPU": 4, "CUSTOM_MEMORY_MB_PAGES_2M": 4096}
    assert list(numa_tree().candidates(request))
    for rules in (FlavorRules(), FlavorRules(numa=True)):
        with pytest.raises(UnhonouredRequest, match="hw:mem_page_size"):
            ResourceRequest.from_flavor(words, rules=rules)


def test_what_needs_a_database_in_nova_is_an_argument() -> None:
    zone, tenants, other = (f"{n:08x}-0000-4000-8000-000000000000" for n in range(3))
    request = ResourceRequest.from_flavor(
        flavor(), member_of=[zone, [tenants, zone]], not_member_of=[other], multiattach=True, limit=5
    )
    assert request.groups[""].member_of == (frozenset({zone}), frozenset({tenants, zone}))
    assert request.groups[""].not_member_of == {other}
    assert request.root_required == {"COMPUTE_VOLUME_MULTI_ATTACH"}
    assert request.root_forbidden == {"COMPUTE_STATUS_DISABLED"}
    assert request.limit == 5


def test_ports_of_kinds_that_no_class_tracks_are_named() -> None:
    direct = {"id": "p1", "binding:vnic_type": "direct", "resource_request": None}
    with pytest.raises(UnhonouredRequest, match=r"port p1: binding:vnic_type=direct"):
        ResourceRequest.from_flavor(flavor(), ports=[direct])
    remote = {"id": "p1", "binding:vnic_type": "remote-managed"}
    request = ResourceRequest.from_flavor(flavor(), ports=[remote], on_unhonoured=lambda word: None)
    assert "COMPUTE_REMOTE_MANAGED_PORTS" in request.root_required
