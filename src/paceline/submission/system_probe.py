"""What this host is: every fact of a system description that a program can find out.

    probe(host) -> {field: (value, where it was read)}

A field that is not in the answer is unknown. Nothing is guessed: a kind of memory that the driver
does not name, the cooling, or how widely a system can be bought stay unknown and are asked for.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections import Counter
from collections.abc import Callable, Sequence

import paceline
from paceline.submission import system_nvml, system_parse
from paceline.submission.system_host import Host
from paceline.submission.system_parse import Gpu, size_text

__all__ = ["Facts", "find_gpus", "probe", "silent_gpus"]

Facts = dict[str, tuple[str | int, str]]

_NONE = "N/A"
_FRAMEWORKS = ("torch", "vllm", "sglang", "tensorrt-llm", "transformers")
_OTHER_SOFTWARE = ("triton", "mlcommons-loadgen", "tokenizers", "numpy")
_LINK_LAYERS = {"InfiniBand": "InfiniBand", "Ethernet": "Ethernet (RoCE)"}


def find_gpus(host: Host) -> tuple[list[Gpu], str]:
    """The accelerators, and what named them: NVML, amd-smi or rocm-smi."""
    if found := system_nvml.gpus():
        return found, "NVML"
    if found := system_parse.gpus_amd_smi(host.run("amd-smi", "static", "--json")):
        return found, "amd-smi static"
    flags = ("--showproductname", "--showmeminfo", "vram", "--showdriverversion", "--json")
    return system_parse.gpus_rocm_smi(host.run("rocm-smi", *flags)), "rocm-smi"


def probe(host: Host, *, gpus: Callable[[Host], tuple[list[Gpu], str]] = find_gpus) -> Facts:
    """Every fact that can be found on `host`."""
    found, source = gpus(host)
    return {
        "number_of_nodes": (1, "this host"),
        "host_networking_topology": (f"{_NONE}: one node", "this host"),
        "system_type": ("datacenter", "the benchmark has no edge category"),
        **_product(host),
        **_processor(host),
        **_memory(host),
        **_storage(host),
        **_network(host),
        **_accelerators(host, found, source),
        **_software(host, found),
    }


def _product(host: Host) -> Facts:
    names = [host.read(f"/sys/class/dmi/id/{part}") for part in ("sys_vendor", "product_name")]
    firmware = host.read("/sys/class/dmi/id/bios_version")
    facts: Facts = {}
    if all(names):
        facts["system_name"] = (" ".join(names), "/sys/class/dmi/id")
    if firmware:
        facts["boot_firmware_version"] = (firmware, "/sys/class/dmi/id/bios_version")
    return facts


def _processor(host: Host) -> Facts:
    cpu = system_parse.cpu(host.run("lscpu", "-J"))
    values = {
        "host_processor_model_name": cpu.model,
        "host_processors_per_node": cpu.sockets,
        "host_processor_core_count": cpu.cores_per_socket,
        "host_processor_caches": cpu.caches,
        "host_processor_frequency": cpu.frequency,
        "host_processor_interconnect": f"{_NONE}: one processor" if cpu.sockets == 1 else None,
        "hw_notes": f"virtual machine ({cpu.virtual})" if cpu.virtual else "no hypervisor reported",
    }
    if cpu.model is None:
        return {}
    return {name: (value, "lscpu") for name, value in values.items() if value is not None}


def _memory(host: Host) -> Facts:
    facts: Facts = {}
    if num_bytes := system_parse.memory(host.read("/proc/meminfo")):
        facts["host_memory_capacity"] = (size_text(num_bytes, binary=True), "/proc/meminfo")
    if modules := system_parse.dimms(host.run("dmidecode", "--type", "memory")):
        facts["host_memory_configuration"] = (modules, "dmidecode")
    return facts


def _storage(host: Host) -> Facts:
    disks = system_parse.disks(host.run("lsblk", "-J", "-b", "-o", "NAME,TYPE,SIZE,ROTA,TRAN"))
    if not disks:
        return {}
    kinds = Counter(kind for kind, _ in disks)
    facts: Facts = {
        "host_storage_capacity": (size_text(sum(size for _, size in disks)), "lsblk"),
        "host_storage_type": (", ".join(sorted(kinds)), "lsblk"),
        "disk_drives": (
            ", ".join(f"{count}x {kind}" for kind, count in sorted(kinds.items())),
            "lsblk",
        ),
    }
    if kind := host.run("findmnt", "-n", "-o", "FSTYPE", "-T", ".").strip():
        facts["filesystem"] = (kind, "findmnt of the working folder")
    return facts


def _network(host: Host) -> Facts:
    """Cards that are hardware: a virtual interface has no device behind it."""
    cards: dict[str, str] = {}
    for name in host.names("/sys/class/infiniband"):
        port = f"/sys/class/infiniband/{name}/ports/1"
        layer = host.read(f"{port}/link_layer")
        rate = " ".join(host.read(f"{port}/rate").split()[:2])
        device = host.resolve(f"/sys/class/infiniband/{name}/device")
        cards[device] = f"{rate} {_LINK_LAYERS.get(layer, layer)}".strip()
    for name in host.names("/sys/class/net"):
        if not host.exists(f"/sys/class/net/{name}/device"):
            continue
        device = host.resolve(f"/sys/class/net/{name}/device")
        speed = host.read(f"/sys/class/net/{name}/speed")
        known = speed.isdecimal() and int(speed) > 0
        rate = f"{int(speed) / 1000:g} Gb/s" if known else "speed unknown"
        cards.setdefault(device, f"Ethernet, {rate}" if not known else f"{rate} Ethernet")
    if not cards:
        return {}
    kinds = Counter(cards.values())
    text = ", ".join(f"{count}x {kind}" for kind, count in sorted(kinds.items()))
    return {
        "host_networking": (text, "/sys/class/net, /sys/class/infiniband"),
        "host_network_card_count": (len(cards), "/sys/class/net, /sys/class/infiniband"),
        "nic_sut": (text, "/sys/class/net, /sys/class/infiniband"),
        "number_nic_sut": (len(cards), "/sys/class/net, /sys/class/infiniband"),
    }


def _accelerators(host: Host, gpus: Sequence[Gpu], source: str) -> Facts:
    if not gpus and silent_gpus(host):
        return {}
    if not gpus:
        source = "no NVIDIA or AMD driver answers"
        names = ("model_name", "memory_capacity", "host_interconnect", "memory_configuration")
        none: Facts = {
            f"accelerator_{name}": (_NONE, source)
            for name in (*names, "interconnect", "frequency", "interconnect_topology")
        }
        return {**none, "accelerators_per_node": (0, source)}
    first = gpus[0]
    alone = len(gpus) == 1
    joined = f"{first.link_kind}, {first.num_links} links each" if first.link_kind else None
    ecc = None if first.ecc is None else f"ECC {'on' if first.ecc else 'off'}"
    memory = [word for word in (first.memory_kind, ecc) if word]
    topology = system_parse.links(host.run("nvidia-smi", "topo", "-m"))
    values = {
        "accelerator_model_name": ", ".join(sorted({gpu.name for gpu in gpus})),
        "accelerator_memory_capacity": size_text(first.memory_bytes, binary=True)
        if first.memory_bytes
        else None,
        "accelerator_memory_configuration": ", ".join(memory) or None,
        "accelerator_host_interconnect": first.pcie,
        "accelerator_frequency": f"{first.clock_mhz} MHz max" if first.clock_mhz else None,
        "accelerator_interconnect": joined or (f"{_NONE}: one accelerator" if alone else None),
        "accelerator_interconnect_topology": f"{_NONE}: one accelerator" if alone else topology,
    }
    if len({gpu.name for gpu in gpus}) > 1:
        values = {"accelerator_model_name": values["accelerator_model_name"]}
    found: Facts = {name: (value, source) for name, value in values.items() if value}
    return {**found, "accelerators_per_node": (len(gpus), source)}


def silent_gpus(host: Host) -> bool:
    """Whether NVIDIA or AMD display devices are plugged in: their driver is missing then."""
    devices = "/sys/bus/pci/devices"
    return any(
        host.read(f"{devices}/{name}/class").startswith("0x03")
        and host.read(f"{devices}/{name}/vendor") in ("0x10de", "0x1002")
        for name in host.names(devices)
    )


def _software(host: Host, gpus: Sequence[Gpu]) -> Facts:
    system = system_parse.os_name(host.read("/etc/os-release")) or platform.system()
    kernel = host.run("uname", "-r").strip()
    framework = [f"paceline {paceline.__version__}", *_versions(_FRAMEWORKS)]
    other = [f"Python {platform.python_version()}", *_versions(_OTHER_SOFTWARE)]
    if gpus and gpus[0].driver:
        other.append(f"driver {gpus[0].driver}")
    inside = _container(host)
    return {
        "operating_system": (f"{system}, Linux {kernel}", "/etc/os-release, uname"),
        "framework": (", ".join(framework), "installed packages"),
        "other_software_stack": (", ".join(other), "installed packages"),
        "sw_notes": (inside or "no mark of a container", "/.dockerenv, /run, environment files"),
        "net_software_stack_sut": (f"Linux {kernel}", "uname"),
    }


def _versions(packages: Sequence[str]) -> list[str]:
    found = []
    for name in packages:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _container(host: Host) -> str | None:
    marks = {
        "/.dockerenv": "in a Docker container",
        "/run/.containerenv": "in a Podman container",
        "/.singularity.d": "in an Apptainer container",
    }
    return next((words for path, words in marks.items() if host.exists(path)), None)
