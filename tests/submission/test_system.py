"""System descriptions from sample outputs of the tools; nothing invented, everything named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from cards import build_driver
from support import Paceline

from paceline.errors import DataError, InputError
from paceline.mlperf.tree_rules import SYSTEM_FIELDS
from paceline.submission import system, system_nvml, system_parse, system_probe
from paceline.submission.system_host import Host
from paceline.submission.system_parse import Gpu

LSCPU = {
    "lscpu": [
        {"field": "Architecture:", "data": "x86_64"},
        {
            "field": "Vendor ID:",
            "data": "AuthenticAMD",
            "children": [
                {
                    "field": "Model name:",
                    "data": "AMD EPYC 9575F 64-Core Processor",
                    "children": [
                        {"field": "Core(s) per socket:", "data": "64"},
                        {"field": "Socket(s):", "data": "2"},
                        {"field": "CPU max MHz:", "data": "5008.0068"},
                        {"field": "CPU min MHz:", "data": "1500.0000"},
                    ],
                }
            ],
        },
        {
            "field": "Caches (sum of all):",
            "data": "",
            "children": [
                {"field": "L1d cache:", "data": "6 MiB (128 instances)"},
                {"field": "L3 cache:", "data": "512 MiB (16 instances)"},
            ],
        },
    ]
}
DMIDECODE = """
# dmidecode 3.5
Handle 0x0022, DMI type 17, 92 bytes
Memory Device
	Total Width: 80 bits
	Size: 64 GB
	Type: DDR5
	Speed: 6400 MT/s
	Manufacturer: Micron Technology
	Part Number: MTC40F2046S1RC64BD2
	Configured Memory Speed: 6000 MT/s

Handle 0x0023, DMI type 17, 92 bytes
Memory Device
	Size: 64 GB
	Type: DDR5
	Manufacturer: Micron Technology
	Part Number: MTC40F2046S1RC64BD2
	Configured Memory Speed: 6000 MT/s

Handle 0x0024, DMI type 17, 92 bytes
Memory Device
	Size: No Module Installed
	Type: Unknown
"""
LSBLK = {
    "blockdevices": [
        {"name": "nvme0n1", "type": "disk", "size": 960197124096, "rota": False, "tran": "nvme"},
        {"name": "nvme1n1", "type": "disk", "size": 960197124096, "rota": False, "tran": "nvme"},
        {"name": "sda", "type": "disk", "size": 4000787030016, "rota": True, "tran": "sata"},
        {"name": "sr0", "type": "rom", "size": 1073741312, "rota": True, "tran": "sata"},
        {"name": "zram0", "type": "disk", "size": 0, "rota": False, "tran": None},
    ]
}
TOPOLOGY = """\
\x1b[4mGPU0	GPU1	GPU2	NIC0	CPU Affinity	NUMA Affinity\x1b[0m
GPU0	 X 	NV18	NV18	PXB	0-55	0
GPU1	NV18	 X 	NV18	SYS	0-55	0
GPU2	NV18	NV18	 X 	SYS	56-111	1
NIC0	PXB	SYS	SYS	 X

Legend:
"""
AMD_SMI = [
    {
        "gpu": index,
        "asic": {"market_name": "AMD Instinct MI300X OAM"},
        "bus": {"max_pcie_width": 16, "pcie_interface_version": "Gen 5"},
        "driver": {"name": "amdgpu", "version": "6.10.5"},
        "vram": {"type": "HBM3", "size": {"value": 196592, "unit": "MB"}},
        "clock": {"sys": {"max_clk": {"value": 2100, "unit": "MHz"}}},
    }
    for index in range(8)
]
ROCM_SMI = {
    "card0": {"Card Series": "AMD Instinct MI250X", "VRAM Total Memory (B)": "68702699520"},
    "card1": {"Card Series": "AMD Instinct MI250X", "VRAM Total Memory (B)": "68702699520"},
    "system": {"Driver version": "6.3.6"},
}
H200 = Gpu(
    name="NVIDIA H200",
    memory_bytes=150754820096,
    memory_kind="6144-bit memory bus",
    clock_mhz=1980,
    pcie="PCIe Gen5 x16",
    num_links=18,
    link_kind="NVLink",
    driver="580.82.07",
    ecc=True,
)


def make_host(root: Path, name: str = "node1", **outputs: str) -> Host:
    """A host of files in `root` and of what its tools print."""
    for path, text in {
        "proc/meminfo": "MemTotal:       1584872000 kB\nMemFree: 1 kB\n",
        "etc/os-release": 'NAME="Ubuntu"\nPRETTY_NAME="Ubuntu 24.04.2 LTS"\n',
        "sys/class/dmi/id/sys_vendor": "Supermicro\n",
        "sys/class/dmi/id/product_name": "AS -8125GS-TNMR2\n",
        "sys/class/net/lo/speed": "",
        "sys/class/net/eth0/speed": "25000\n",
        "sys/class/net/eth0/device/vendor": "0x8086\n",
        "sys/class/net/ib0/device/vendor": "0x15b3\n",
        "sys/class/infiniband/mlx5_0/ports/1/rate": "400 Gb/sec (4X NDR)\n",
        "sys/class/infiniband/mlx5_0/ports/1/link_layer": "InfiniBand\n",
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    device = root / "sys/class/infiniband/mlx5_0/device"
    if not device.exists():
        device.symlink_to(root / "sys/class/net/ib0/device")
    printed = {
        "lscpu": json.dumps(LSCPU),
        "dmidecode": DMIDECODE,
        "lsblk": json.dumps(LSBLK),
        "uname": "6.8.0-60-generic\n",
        "findmnt": "xfs\n",
        "nvidia-smi": TOPOLOGY,
        **outputs,
    }
    return Host(name=name, root=root, run=lambda *command: printed.get(command[0], ""))


def probed(host: Host, *gpus: Gpu) -> dict[str, str | int]:
    facts = system_probe.probe(host, gpus=lambda _: (list(gpus), "NVML"))
    return {name: value for name, (value, _) in facts.items()}


def test_a_gpu_host_describes_itself(tmp_path: Path) -> None:
    facts = probed(make_host(tmp_path), H200, H200, H200)
    assert facts["host_processor_model_name"] == "AMD EPYC 9575F 64-Core Processor"
    assert (facts["host_processors_per_node"], facts["host_processor_core_count"]) == (2, 64)
    assert facts["host_processor_frequency"] == "1500 to 5008 MHz"
    assert facts["host_processor_caches"] == (
        "L1d 6 MiB (128 instances), L3 512 MiB (16 instances)"
    )
    assert facts["host_memory_capacity"] == "1.476 TiB"
    assert facts["host_memory_configuration"] == (
        "2x 64 GB DDR5 6000 MT/s Micron Technology MTC40F2046S1RC64BD2"
    )
    assert facts["host_storage_type"] == "NVMe SSD, SATA HDD"
    assert facts["host_storage_capacity"] == "5.921 TB"
    assert facts["system_name"] == "Supermicro AS -8125GS-TNMR2"
    assert facts["host_networking"] == "1x 25 Gb/s Ethernet, 1x 400 Gb/sec InfiniBand"
    assert facts["host_network_card_count"] == 2
    assert facts["accelerators_per_node"] == 3
    assert facts["accelerator_memory_capacity"] == "140.4 GiB"
    assert facts["accelerator_memory_configuration"] == "6144-bit memory bus, ECC on"
    assert facts["accelerator_host_interconnect"] == "PCIe Gen5 x16"
    assert facts["accelerator_interconnect"] == "NVLink, 18 links each"
    assert facts["accelerator_interconnect_topology"] == "all pairs NV18"
    assert "driver 580.82.07" in str(facts["other_software_stack"])
    assert facts["operating_system"] == "Ubuntu 24.04.2 LTS, Linux 6.8.0-60-generic"


def test_a_card_that_is_both_infiniband_and_an_interface_counts_once(tmp_path: Path) -> None:
    assert probed(make_host(tmp_path))["number_nic_sut"] == 2


def test_two_generations_of_amd_tools_are_read() -> None:
    found = system_parse.gpus_amd_smi(json.dumps(AMD_SMI))
    assert len(found) == 8
    assert found[0] == Gpu(
        name="AMD Instinct MI300X OAM",
        memory_bytes=196592 << 20,
        memory_kind="HBM3",
        clock_mhz=2100,
        pcie="PCIe Gen5 x16",
        driver="6.10.5",
    )
    assert system_parse.gpus_amd_smi(json.dumps({"gpu_data": AMD_SMI})) == found
    older = system_parse.gpus_rocm_smi(json.dumps(ROCM_SMI))
    assert [gpu.memory_bytes for gpu in older] == [68702699520] * 2
    assert older[0].driver == "6.3.6"


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"lscpu": 3}', '[{"asic": []}]', "\0"])
def test_a_tool_that_prints_nonsense_gives_no_facts(text: str) -> None:
    assert system_parse.cpu(text).model is None
    assert system_parse.disks(text) == []
    assert system_parse.dimms(text) is None
    assert system_parse.memory(text) is None
    assert system_parse.gpus_rocm_smi(text) == []
    assert system_parse.links(text) is None
    assert all(gpu.memory_bytes is None for gpu in system_parse.gpus_amd_smi(text))


def test_links_that_differ_are_counted() -> None:
    text = "    GPU0 GPU1 GPU2\nGPU0 X NV4 SYS\nGPU1 NV4 X SYS\nGPU2 SYS SYS X\n"
    assert system_parse.links(text) == "1 pairs NV4, 2 pairs SYS"


def test_a_gpu_whose_driver_is_missing_is_not_taken_for_no_gpu(tmp_path: Path) -> None:
    host = make_host(tmp_path)
    device = tmp_path / "sys/bus/pci/devices/0000:41:00.0"
    device.mkdir(parents=True)
    (device / "class").write_text("0x030200\n")
    (device / "vendor").write_text("0x10de\n")
    facts = probed(host)
    assert "accelerators_per_node" not in facts
    assert "accelerator_model_name" not in facts


def test_a_host_without_accelerators_says_none(tmp_path: Path) -> None:
    facts = probed(make_host(tmp_path))
    assert facts["accelerators_per_node"] == 0
    assert facts["accelerator_model_name"] == "N/A"


def test_what_no_tool_says_is_unknown_and_never_invented(tmp_path: Path) -> None:
    bare = Host(name="bare", root=tmp_path / "empty", run=lambda *_: "")
    described = system.describe(bare)
    assert described.fields["cooling"].provenance == "unknown"
    assert described.value("host_memory_capacity") is None
    assert described.value("host_processor_model_name") is None
    listed = dict(system.missing(described))
    assert {"cooling", "status", "system_name", "host_networking"} <= set(listed)
    assert "--set cooling=" in listed["cooling"]


def test_every_official_field_is_there(tmp_path: Path) -> None:
    described = system.describe(make_host(tmp_path), network=True)
    assert set(described.fields) >= {*SYSTEM_FIELDS.required, *SYSTEM_FIELDS.network}
    assert len(SYSTEM_FIELDS.required) == 35
    assert described.value("is_network") == "True"
    assert described.value("nic_sut") == described.value("host_networking")
    assert {"network_type", "network_protocol"} <= {name for name, _ in system.missing(described)}


def complete(root: Path, name: str = "node1", **outputs: str) -> system.Description:
    described = system.describe(make_host(root, name, **outputs))
    given = {"cooling": "air", "status": "available"}
    return system.give(described, given, origin="--set")


def test_a_description_with_unknown_fields_is_not_written_to_a_tree(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cooling"):
        system.official(system.describe(make_host(tmp_path)), division="open", submitter="Team")
    official = system.official(complete(tmp_path), division="open", submitter="Team")
    assert official["division"] == "open"
    assert official["cooling"] == "air"


def test_no_accelerators_are_written_so_that_the_official_checker_sees_an_answer(
    tmp_path: Path,
) -> None:
    official = system.official(complete(tmp_path), division="open", submitter="Team")
    assert official["accelerators_per_node"] == "0"


def test_a_field_that_does_not_exist_names_the_nearest(tmp_path: Path) -> None:
    described = system.describe(make_host(tmp_path))
    with pytest.raises(InputError, match="colling") as caught:
        system.give(described, {"colling": "air"}, origin="--set")
    assert "cooling" in str(caught.value.hint)


@pytest.mark.parametrize(
    "values", [{"status": "soon"}, {"number_of_nodes": "two"}, {"system_type": "laptop"}]
)
def test_a_value_that_the_field_cannot_have_is_refused(
    tmp_path: Path, values: dict[str, str]
) -> None:
    with pytest.raises(InputError):
        system.give(system.describe(make_host(tmp_path)), values, origin="--set")


def test_equal_hosts_merge_into_nodes(tmp_path: Path) -> None:
    merged = system.merge([complete(tmp_path / name, name) for name in ("a", "b", "c")])
    assert merged.value("number_of_nodes") == 3
    assert merged.differences == ()
    assert merged.hosts == ("a", "b", "c")
    # One node alone has no topology; three have one that nobody has told yet.
    assert [name for name, _ in system.missing(merged)] == ["host_networking_topology"]


def test_hosts_that_differ_are_shown_and_the_field_is_asked_for(tmp_path: Path) -> None:
    other = complete(tmp_path / "b", "b", dmidecode=DMIDECODE.replace("64 GB", "32 GB"))
    merged = system.merge([complete(tmp_path / "a", "a"), other])
    assert len(merged.differences) == 1
    assert "a: 2x 64 GB" in merged.differences[0]
    assert "b: 2x 32 GB" in merged.differences[0]
    assert "host_memory_configuration" in dict(system.missing(merged))


def test_a_host_described_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="node1 is described twice"):
        system.merge([complete(tmp_path), complete(tmp_path)])


def test_a_description_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    described = complete(tmp_path / "host")
    path = tmp_path / "box.json"
    path.write_text(json.dumps(described.as_json()))
    assert system.read(path) == described


def test_a_systems_json_of_another_tool_is_taken_as_given(tmp_path: Path) -> None:
    path = tmp_path / "box.json"
    path.write_text(json.dumps({"cooling": "liquid", "number_of_nodes": 1}))
    read = system.read(path)
    assert read.fields["cooling"].provenance == "given"
    assert read.hosts == ()


@pytest.mark.parametrize("text", ["", "[]", '{"fields": 3}', '{"status": null}'])
def test_a_file_that_is_no_description_is_one_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "box.json"
    path.write_text(text)
    with pytest.raises((DataError, InputError)):
        system.read(path)


def test_the_verb_describes_this_host_and_takes_a_toml(paceline: Paceline, tmp_path: Path) -> None:
    (tmp_path / "system.toml").write_text('cooling = "air"\nstatus = "available"\n')
    outcome = paceline(
        *("system", "--file", "system.toml", "--set", "cooling=liquid", "--json"),
        *("--out", "box.json"),
    )
    assert outcome.code == 0, outcome
    fields = outcome.json["fields"]
    assert fields["cooling"] == {"value": "liquid", "provenance": "given", "origin": "--set"}
    assert fields["status"]["origin"] == "system.toml"
    assert fields["operating_system"]["provenance"] == "detected"
    assert json.loads((tmp_path / "box.json").read_text()) == outcome.json


def test_the_verb_merges_files(paceline: Paceline, tmp_path: Path) -> None:
    for name in ("a", "b"):
        described = complete(tmp_path / name, name)
        (tmp_path / f"{name}.json").write_text(json.dumps(described.as_json()))
    outcome = paceline("system", "--merge", "a.json", "b.json")
    assert outcome.code == 0, outcome
    assert "number_of_nodes                    2" in outcome.out
    assert paceline("system", "a.json", "b.json").code == 2
    assert paceline("system", "--merge").code == 2


def test_the_verb_fills_in_a_description_that_is_there(paceline: Paceline, tmp_path: Path) -> None:
    described = system.describe(make_host(tmp_path / "a", "a"))
    (tmp_path / "a.json").write_text(json.dumps(described.as_json()))
    outcome = paceline("system", "a.json", "--set", "cooling=liquid", "--json")
    assert outcome.json["hosts"] == ["a"]
    assert outcome.json["fields"]["cooling"]["value"] == "liquid"
    assert "cooling" not in outcome.json["unknown"]


def test_nvml_is_asked_by_its_binary_interface(tmp_path: Path) -> None:
    whole = Gpu(
        name="NVIDIA H200",
        memory_bytes=150754820096,
        memory_kind="6144-bit memory bus",
        clock_mhz=1980,
        pcie="PCIe Gen5 x16",
        num_links=18,
        link_kind="NVLink",
        driver="580.1",
        ecc=True,
    )
    found = system_nvml.gpus(str(build_driver(tmp_path, LINKS_UP=4)))
    assert found == [whole, replace(whole, num_links=4)]


def test_a_machine_without_the_driver_has_no_nvidia_gpus() -> None:
    assert system_nvml.gpus("libnothing-at-all.so") == []
