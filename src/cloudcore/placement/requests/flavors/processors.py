"""How a guest's processors and memory are to be laid out: policies, masks, NUMA cells. Pure.

Source: ``nova.virt.hardware`` of Nova 34; each function names its own.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Literal

import attrs

from cloudcore._values import require_integer
from cloudcore.errors import InvalidRequest
from cloudcore.placement.requests.flavors.words import (
    FlavorWords,
    agreed_flag,
    both,
    cpu_set,
    flag,
    numbered,
    one_of,
    whole,
)
from cloudcore.placement.requests.groups import refuse

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Cell", "PageSize", "Processors", "read_cells", "read_page_size", "read_processors"]

_EXPLICIT = re.compile(r"resources(?:[1-9][0-9]*)?:(VCPU|PCPU)")
_HYPERTHREADING = re.compile(r"trait(?:[1-9][0-9]*)?:HW_CPU_HYPERTHREADING")
_SIZE = re.compile(r"([0-9]{0,18}\.?[0-9]{1,18})([KMGTPEZYRQ]?)i?(b|bit|B)\Z")

PageSize = int | Literal["any", "large", "small"]
"""KiB, or a word for one."""

_SIZES: Mapping[str, PageSize] = {"any": "any", "large": "large", "small": "small"}


@attrs.frozen(kw_only=True)
class Processors:
    """What the policies come to.

    Attributes:
        policy: Shared, dedicated or mixed; None where nothing is said.
        dedicated: The guest's processors that have one of the host's for themselves.
        emulator: One more host processor for the emulator's threads.
        threads: Whether ``HW_CPU_HYPERTHREADING`` is required or forbidden by ``hw:cpu_thread_policy``.
        implied: The policy came from words of its own, not from explicit ``resources:PCPU``.
    """

    policy: str | None
    dedicated: frozenset[int]
    emulator: bool
    threads: Literal["required", "forbidden"] | None
    implied: bool


def read_processors(flavor: FlavorWords, image: Mapping[str, str]) -> Processors:
    """Weigh the policies of flavor and image against each other.

    Source: ``hardware.numa_get_constraints`` up to the topology, with ``get_cpu_policy_constraint``,
    ``get_cpu_thread_policy_constraint``, ``get_realtime_cpu_constraint``, ``get_dedicated_cpu_constraint`` and
    ``get_emulator_thread_policy_constraint``; Nova's API refuses a server for the same reasons.

    Raises:
        InvalidRequest: A policy is unknown, contradicts another, or lacks the one that it builds on.
    """
    named = _cpu_policy(flavor, image)
    thread_policy = _thread_policy(flavor, image)
    emulator_word = flavor.extra_specs.get("hw:emulator_threads_policy")
    emulator = one_of(emulator_word, ("share", "isolate"), "hw:emulator_threads_policy") == "isolate"
    realtime = _realtime(flavor, image, emulator_said=bool(emulator_word))
    mask = _dedicated_mask(flavor)
    policy = _explicit_policy(flavor, named, emulator=emulator)
    hyperthreading = _hyperthreading(flavor, image)
    if thread_policy and hyperthreading:
        raise refuse("say it by hw:cpu_thread_policy or by trait:HW_CPU_HYPERTHREADING", "hw:cpu_thread_policy")
    _check_policy(policy, thread_policy or hyperthreading, realtime, mask, emulator=emulator)
    dedicated = flavor.every_cpu("hw:cpu_policy") if policy == "dedicated" else (mask or realtime or frozenset())
    threads: dict[str | None, Literal["required", "forbidden"]] = {"isolate": "forbidden", "require": "required"}
    return Processors(
        policy=policy,
        dedicated=dedicated if policy in {"dedicated", "mixed"} else frozenset(),
        emulator=emulator,
        threads=threads.get(thread_policy),
        implied=named is not None,
    )


def _cpu_policy(flavor: FlavorWords, image: Mapping[str, str]) -> str | None:
    wanted, offered = both("cpu_policy", flavor, image)
    for word, field in ((wanted, "hw:cpu_policy"), (offered, "hw_cpu_policy")):
        one_of(word, ("dedicated", "shared", "mixed"), field)
    forbidden = {"mixed": {"dedicated"}, "shared": {"mixed", "dedicated"}}
    if wanted and offered in forbidden.get(wanted, set()):
        raise refuse(f"the image asks for {offered}, the flavor allows {wanted}", "hw:cpu_policy", wanted)
    return wanted or offered or None


def _thread_policy(flavor: FlavorWords, image: Mapping[str, str]) -> str | None:
    wanted, offered = both("cpu_thread_policy", flavor, image)
    for word, field in ((wanted, "hw:cpu_thread_policy"), (offered, "hw_cpu_thread_policy")):
        one_of(word, ("prefer", "isolate", "require"), field)
    if wanted in {None, "prefer"}:
        return wanted or offered
    if offered and offered != wanted:
        raise refuse(f"the image asks for {offered}, the flavor for {wanted}", "hw:cpu_thread_policy", wanted)
    return wanted or None


def _masked(mask: str, flavor: FlavorWords, field: str) -> frozenset[int]:
    everything = f"0-{flavor.vcpus - 1},"
    return cpu_set((everything if mask.strip().startswith("^") else "") + mask, field)


def _realtime(flavor: FlavorWords, image: Mapping[str, str], *, emulator_said: bool) -> frozenset[int] | None:
    if not flag(flavor.extra_specs.get("hw:cpu_realtime")):
        return None
    wanted, offered = both("cpu_realtime_mask", flavor, image)
    mask, every = offered or wanted, flavor.every_cpu("hw:cpu_realtime")
    chosen = _masked(mask, flavor, "hw:cpu_realtime_mask") if mask else every
    if not chosen or not chosen <= every or (chosen == every and not emulator_said):
        raise refuse(
            f"must name some of the {flavor.vcpus} processors, and leave some unless emulator threads have a policy",
            "hw:cpu_realtime_mask",
            mask,
        )
    return chosen


def _dedicated_mask(flavor: FlavorWords) -> frozenset[int] | None:
    mask = flavor.extra_specs.get("hw:cpu_dedicated_mask")
    if not mask:
        return None
    every = flavor.every_cpu("hw:cpu_dedicated_mask")
    chosen = _masked(mask, flavor, "hw:cpu_dedicated_mask")
    if not chosen or not chosen < every:
        raise refuse(f"must name some, not all, of the {flavor.vcpus} processors", "hw:cpu_dedicated_mask", mask)
    return chosen


def _explicit_policy(flavor: FlavorWords, named: str | None, *, emulator: bool) -> str | None:
    asked = {"VCPU": 0, "PCPU": 0}
    for key, value in flavor.extra_specs.items():
        match = _EXPLICIT.match(key)
        if match and re.fullmatch(r"\s*[+-]?[0-9]{1,18}\s*", value, re.ASCII):
            asked[match[1]] += int(value)
    if named and any(asked.values()):
        raise refuse("takes no resources:VCPU or resources:PCPU beside it", "hw:cpu_policy", named)
    if all(asked.values()):
        raise refuse("resources:VCPU and resources:PCPU exclude each other", "resources:PCPU", asked["PCPU"])
    if asked["PCPU"]:
        if asked["PCPU"] != flavor.vcpus + emulator:
            raise refuse(f"must be {flavor.vcpus + emulator} with this flavor", "resources:PCPU", asked["PCPU"])
        return "dedicated"
    return "shared" if asked["VCPU"] else named


def _hyperthreading(flavor: FlavorWords, image: Mapping[str, str]) -> str | None:
    for key, value in flavor.extra_specs.items():
        if _HYPERTHREADING.match(key):
            return value
    return "required" if image.get("trait:HW_CPU_HYPERTHREADING") == "required" else None


def _check_policy(
    policy: str | None,
    threads: str | None,
    realtime: frozenset[int] | None,
    mask: frozenset[int] | None,
    *,
    emulator: bool,
) -> None:
    if policy == "mixed":
        if bool(realtime) == bool(mask):
            raise refuse("mixed needs hw:cpu_dedicated_mask or a realtime mask, and only one of them", "hw:cpu_policy")
        return
    if mask:
        raise refuse("needs hw:cpu_policy=mixed", "hw:cpu_dedicated_mask")
    if policy == "dedicated":
        return
    if threads in {"prefer", "isolate", "require", "required", "forbidden"}:
        raise refuse("needs hw:cpu_policy=dedicated", "hw:cpu_thread_policy", threads)
    if emulator:
        raise refuse("isolate needs hw:cpu_policy=dedicated", "hw:emulator_threads_policy")
    if realtime:
        raise refuse("needs hw:cpu_policy=dedicated", "hw:cpu_realtime")


@attrs.frozen
class Cell:
    """A NUMA cell of the guest: numbers of shared and dedicated processors, MiB of memory."""

    shared: int
    dedicated: int
    memory_mb: int


def read_page_size(flavor: FlavorWords, image: Mapping[str, str]) -> PageSize | None:
    """The size of memory pages (``hardware._get_numa_pagesize_constraint``), checked with ``hw:locked_memory``.

    Raises:
        InvalidRequest: No size, a wish of the image that the flavor does not allow, or locked memory without a size.
    """
    wanted, offered = both("mem_page_size", flavor, image)
    if offered and not wanted:
        raise refuse("the flavor must allow it by hw:mem_page_size", "hw_mem_page_size", offered)
    if agreed_flag("locked_memory", flavor, image) and not wanted:
        raise refuse("needs hw:mem_page_size", "hw:locked_memory")
    if not wanted:
        return None
    size = _page_size(wanted)
    if not offered:
        return size
    if size not in {"any", "large"}:
        raise refuse(f"the image asks for {offered}, the flavor for {wanted}", "hw:mem_page_size", wanted)
    return _page_size(offered)


def _page_size(text: str) -> PageSize:
    if text in _SIZES:
        return _SIZES[text]
    if text.isascii() and text.isdigit():
        return whole(text, "hw:mem_page_size")
    match = _SIZE.match(text)
    if not match:
        raise refuse(f"no size of pages: {text!r}", "hw:mem_page_size", text)
    power = " KMGTPEZYRQ".index(match[2] or " ")
    kib = math.ceil(float(match[1]) / (1 if match[3] == "B" else 8) * float(1024**power)) // 1024
    return require_integer(kib, "hw:mem_page_size", minimum=0, error=InvalidRequest)


def read_cells(
    flavor: FlavorWords, image: Mapping[str, str], processors: Processors, *, needed: bool
) -> tuple[Cell, ...]:
    """The guest's NUMA cells; none where nothing gives it any.

    *needed*: huge pages or persistent memory give it cells, as dedicated processors and ``hw:numa_nodes`` do.
    Source: ``hardware.numa_get_constraints``, ``_get_numa_topology_auto`` and ``_get_numa_topology_manual``.

    Raises:
        InvalidRequest: The cells do not add up to the flavor, or flavor and image both describe them.
    """
    count = _cell_count(flavor, image)
    if not (count or needed or processors.policy in {"dedicated", "mixed"}):
        return ()
    count, every = count or 1, flavor.every_cpu("hw:numa_nodes")
    cpus, memory = _said(flavor, image, "numa_cpus"), _said(flavor, image, "numa_mem")
    if cpus is None and memory is None:
        return _even(flavor, processors, count)
    if cpus is None or memory is None or len(cpus) != count or len(memory) != count:
        raise refuse(f"hw:numa_cpus.N and hw:numa_mem.N must be there for each of the {count} cells", "hw:numa_nodes")
    sets = [cpu_set(text, name) for name, text in cpus]
    amounts = [whole(text, name) for name, text in memory]
    if sorted(cpu for one in sets for cpu in one) != sorted(every):
        raise refuse(f"the cells must share out the {flavor.vcpus} processors, each once", "hw:numa_cpus")
    if sum(amounts) != flavor.memory_mb:
        raise refuse(f"{sum(amounts)} MiB in the cells, {flavor.memory_mb} in the flavor", "hw:numa_mem")
    return tuple(_cell(one, processors, amount) for one, amount in zip(sets, amounts, strict=True))


def _cell_count(flavor: FlavorWords, image: Mapping[str, str]) -> int:
    wanted, offered = both("numa_nodes", flavor, image)
    if wanted and offered:
        raise refuse("flavor and image must not both say it", "hw:numa_nodes", wanted)
    text = wanted or offered
    return whole(text, "hw:numa_nodes", minimum=1) if text else 0


def _said(flavor: FlavorWords, image: Mapping[str, str], key: str) -> list[tuple[str, str]] | None:
    wanted, offered = numbered(flavor.extra_specs, f"hw:{key}"), numbered(image, f"hw_{key}")
    if wanted and offered:
        raise refuse("flavor and image must not both say it", f"hw:{key}")
    return wanted or offered


def _even(flavor: FlavorWords, processors: Processors, count: int) -> tuple[Cell, ...]:
    if flavor.vcpus % count or flavor.memory_mb % count:
        raise refuse(f"{count} does not divide {flavor.vcpus} processors and {flavor.memory_mb} MiB", "hw:numa_nodes")
    each = flavor.vcpus // count
    return tuple(
        _cell(frozenset(range(n * each, (n + 1) * each)), processors, flavor.memory_mb // count) for n in range(count)
    )


def _cell(cpus: frozenset[int], processors: Processors, memory_mb: int) -> Cell:
    dedicated = len(cpus & processors.dedicated)
    return Cell(len(cpus) - dedicated, dedicated, memory_mb)
