"""Which facts hold which standard traits. Tables only; names are those of os-traits."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cloudcore.hypervisor.facts.host import HostFacts

__all__ = ["CPU_TRAITS", "OWNED_ROOT_TRAITS", "root_traits"]

CPU_TRAITS: dict[str, tuple[str, ...]] = {
    "3dnow": ("HW_CPU_X86_3DNOW",),
    "abm": ("HW_CPU_X86_ABM",),
    "aes": ("HW_CPU_X86_AESNI",),
    "amx-bf16": ("HW_CPU_X86_AMXBF16",),
    "amx-int8": ("HW_CPU_X86_AMXINT8",),
    "amx-tile": ("HW_CPU_X86_AMXTILE",),
    "avx": ("HW_CPU_X86_AVX",),
    "avx2": ("HW_CPU_X86_AVX2",),
    "avx512-vpopcntdq": ("HW_CPU_X86_AVX512VPOPCNTDQ",),
    "avx512bitalg": ("HW_CPU_X86_AVX512BITALG",),
    "avx512bw": ("HW_CPU_X86_AVX512BW",),
    "avx512cd": ("HW_CPU_X86_AVX512CD",),
    "avx512dq": ("HW_CPU_X86_AVX512DQ",),
    "avx512er": ("HW_CPU_X86_AVX512ER",),
    "avx512f": ("HW_CPU_X86_AVX512F",),
    "avx512ifma": ("HW_CPU_X86_AVX512IFMA",),
    "avx512pf": ("HW_CPU_X86_AVX512PF",),
    "avx512vbmi": ("HW_CPU_X86_AVX512VBMI",),
    "avx512vbmi2": ("HW_CPU_X86_AVX512VBMI2",),
    "avx512vl": ("HW_CPU_X86_AVX512VL",),
    "avx512vnni": ("HW_CPU_X86_AVX512VNNI",),
    "bmi1": ("HW_CPU_X86_BMI",),
    "bmi2": ("HW_CPU_X86_BMI2",),
    "f16c": ("HW_CPU_X86_F16C",),
    "fma": ("HW_CPU_X86_FMA3",),
    "fma4": ("HW_CPU_X86_FMA4",),
    "gfni": ("HW_CPU_X86_AVX512GFNI",),
    "ibpb": ("HW_CPU_X86_AMD_IBPB",),
    "amd-no-ssb": ("HW_CPU_X86_AMD_NO_SSB",),
    "amd-ssbd": ("HW_CPU_X86_AMD_SSBD",),
    "md-clear": ("HW_CPU_X86_INTEL_MD_CLEAR",),
    "mmx": ("HW_CPU_X86_MMX",),
    "mpx": ("HW_CPU_X86_MPX",),
    "pcid": ("HW_CPU_X86_INTEL_PCID",),
    "pclmuldq": ("HW_CPU_X86_CLMUL",),
    "pclmulqdq": ("HW_CPU_X86_CLMUL",),
    "pdpe1gb": ("HW_CPU_X86_PDPE1GB",),
    "pni": ("HW_CPU_X86_SSE3",),
    "rtm": ("HW_CPU_X86_TSX",),
    "sgx": ("HW_CPU_X86_SGX",),
    "sha-ni": ("HW_CPU_X86_SHA",),
    "spec-ctrl": ("HW_CPU_X86_INTEL_SPEC_CTRL",),
    "ssbd": ("HW_CPU_X86_INTEL_SSBD",),
    "sse": ("HW_CPU_X86_SSE",),
    "sse2": ("HW_CPU_X86_SSE2",),
    "sse4.1": ("HW_CPU_X86_SSE41",),
    "sse4.2": ("HW_CPU_X86_SSE42",),
    "sse4a": ("HW_CPU_X86_SSE4A",),
    "ssse3": ("HW_CPU_X86_SSSE3",),
    "stibp": ("HW_CPU_X86_STIBP",),
    "svm": ("HW_CPU_X86_SVM", "HW_CPU_X86_AMD_SVM"),
    "tbm": ("HW_CPU_X86_TBM",),
    "vaes": ("HW_CPU_X86_AVX512VAES",),
    "virt-ssbd": ("HW_CPU_X86_AMD_VIRT_SSBD",),
    "vmx": ("HW_CPU_X86_VMX", "HW_CPU_X86_INTEL_VMX"),
    "vpclmulqdq": ("HW_CPU_X86_AVX512VPCLMULQDQ",),
    "xop": ("HW_CPU_X86_XOP",),
}
"""libvirt's names of CPU features. The virtualisation flags have an old and a new name each."""

_HOST_ARCHITECTURES = ("AARCH64", "I686", "MIPS64EL", "PPC64", "PPC64LE", "S390X", "SPARC64", "X86_64")
_ARCHITECTURES = {name.lower(): f"HW_ARCH_{name}" for name in _HOST_ARCHITECTURES}
_GUEST_ARCHITECTURES = {
    name.lower(): f"COMPUTE_ARCH_{name}" for name in ("AARCH64", "PPC64LE", "MIPSEL", "S390X", "RISCV64", "X86_64")
}
_BUSES = {
    name: f"COMPUTE_STORAGE_BUS_{name.upper()}" for name in ("fdc", "ide", "sata", "scsi", "usb", "virtio", "xen")
}
_VIDEO = {
    name: f"COMPUTE_GRAPHICS_MODEL_{name.upper()}"
    for name in ("bochs", "cirrus", "gop", "none", "qxl", "vga", "virtio", "vmvga", "xen")
}
_TPM_MODELS = {"tpm-tis": "COMPUTE_SECURITY_TPM_TIS", "tpm-crb": "COMPUTE_SECURITY_TPM_CRB"}
_TPM_VERSIONS = {"1.2": "COMPUTE_SECURITY_TPM_1_2", "2.0": "COMPUTE_SECURITY_TPM_2_0"}
_VOLUMES = ("COMPUTE_VOLUME_ATTACH", "COMPUTE_VOLUME_EXTEND")
_MULTI_ATTACH = "COMPUTE_VOLUME_MULTI_ATTACH"
_SINGLE = (
    "HW_CPU_HYPERTHREADING",
    "COMPUTE_SECURITY_UEFI_SECURE_BOOT",
    "COMPUTE_FIRMWARE_UEFI",
    "COMPUTE_MEM_BACKING_FILE",
    _MULTI_ATTACH,
    *_VOLUMES,
)

OWNED_ROOT_TRAITS: frozenset[str] = frozenset(
    [trait for traits in CPU_TRAITS.values() for trait in traits]
    + [trait for table in (_ARCHITECTURES, _GUEST_ARCHITECTURES, _BUSES, _VIDEO) for trait in table.values()]
    + [*_TPM_MODELS.values(), *_TPM_VERSIONS.values(), *_SINGLE]
)
"""The closed set that cloudcore decides on a root: set when they hold, removed when they do not. All others stay."""


def root_traits(facts: HostFacts) -> dict[str, str]:
    """The traits that hold for the host as a whole, each with the fact that says so."""
    found: dict[str, str] = {}
    for feature in sorted(facts.cpu.features):
        for trait in CPU_TRAITS.get(feature, ()):
            found.setdefault(trait, f"CPU feature {feature} ({facts.cpu.source})")
    if facts.architecture in _ARCHITECTURES:
        found[_ARCHITECTURES[facts.architecture]] = "architecture of the host"
    for name in sorted(facts.guest_architectures & _GUEST_ARCHITECTURES.keys()):
        found[_GUEST_ARCHITECTURES[name]] = f"guests of architecture {name} (host capabilities)"
    if any(cell.siblings for cell in facts.cells):
        found["HW_CPU_HYPERTHREADING"] = "threads share cores (host topology)"
    found.update(_emulator_traits(facts))
    return found


def _emulator_traits(facts: HostFacts) -> dict[str, str]:
    domain, found = facts.domain, dict[str, str]()
    if domain is None:
        return found
    tables = (
        (_BUSES, domain.disk_buses, "disk bus"),
        (_VIDEO, domain.video_models, "video model"),
        (_TPM_MODELS, domain.tpm_models, "TPM model"),
        (_TPM_VERSIONS, domain.tpm_versions, "TPM version"),
    )
    for table, values, what in tables:
        found.update({table[name]: f"{what} {name} (domain capabilities)" for name in sorted(values & table.keys())})
    flags = (
        ("COMPUTE_SECURITY_UEFI_SECURE_BOOT", domain.secure_boot, "secure loader"),
        ("COMPUTE_FIRMWARE_UEFI", domain.uefi, "EFI firmware"),
        ("COMPUTE_MEM_BACKING_FILE", domain.file_backed_memory, "file-backed memory"),
    )
    found.update({trait: f"{what} (domain capabilities)" for trait, holds, what in flags if holds})
    if domain.type in {"qemu", "kvm"}:
        found.update(dict.fromkeys(_VOLUMES, "disks are plugged by QEMU"))
        if facts.hypervisor_version >= 2_010_000 and facts.libvirt_version >= 3_010_000:
            found[_MULTI_ATTACH] = "QEMU >= 2.10 and libvirt >= 3.10 share images between guests"
    return found
