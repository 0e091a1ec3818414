"""Simulated cards: each trouble is found, and the way out of it is shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cards import build_driver, finding, machine
from support import Paceline

from paceline.config import read_settings
from paceline.operate import Asked, Finding, Request, asked, examine
from paceline.operate.cards import card_findings
from paceline.operate.plan import Placed, placed
from paceline.quantize.scheme import quantization_config
from paceline.submission import system_nvml
from paceline.submission.system_host import Host, this_host

RECIPE = """
[run]
benchmark = "llama2-70b-99.9"
[engine]
name = "native"
[engine.native]
device = "cuda"
quantization = "fp8-tensor"
data_parallel = 2
"""


REPOSITORY = Path(__file__).parents[2]


def test_links_that_every_card_lacks_are_no_fault_of_one(tmp_path: Path) -> None:
    found = {one.name: one for one in look(tmp_path, LINKS_UP=0, LINKS_ELSE=0)}
    assert not found["gpu 0 links"].is_known
    assert "0 of 18 NVLinks up on every card" in found["gpu 0 links"].seen
    alone = look(tmp_path / "alone", LINKS_UP=0, CARDS=1)
    assert {one.level for one in alone} == {"ok"}


AMD_SMI = [
    {
        "gpu": place,
        "asic": {"market_name": "AMD Instinct MI300X OAM"},
        "driver": {"version": "6.10.5"},
        "vram": {"type": "HBM3", "size": {"value": 196592, "unit": "MB"}},
    }
    for place in range(8)
]


def test_two_well_cards_are_well_and_get_a_plan(paceline: Paceline, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(RECIPE)
    outcome = paceline("doctor", "r.toml", "--json", env=machine(tmp_path / "driver"))
    assert finding(outcome, "gpus")["seen"] == "2x NVIDIA H200, driver 580.1"
    for name in ("gpu 0 memory", "gpu 1 memory", "gpu 1 speed", "gpu 1 errors", "gpu 1 links"):
        assert finding(outcome, name)["level"] == "ok"
    assert finding(outcome, "gpu 1 speed")["seen"].startswith("1980 of 1980 MHz, 41 C, 76 W of 700")
    assert finding(outcome, "model fits")["level"] == "ok"
    plan = outcome.json["plan"]
    assert (plan["tensor_parallel"], plan["replicas"]) == (1, 2)
    # FP8: 141 GiB less 3 GB and 69 GB of weights, over 490 tokens of 163,840 bytes.
    assert 930 < plan["live_sequences_per_replica"] < 1000
    assert plan["tokens_per_second_at_best"] == pytest.approx(2 * 4487.9)
    assert plan["performance_hours_at_least"] == pytest.approx(24576 * 294.45 / 8976 / 3600, 0.01)


@pytest.mark.parametrize(
    ("flags", "name", "level", "seen", "mend"),
    [
        ({"THROTTLE": 0x40}, "speed", "warning", "thermal (hardware)", "nvidia-smi -q -d"),
        ({"THROTTLE": 0x84}, "speed", "warning", "power cap, power brake", "power cables"),
        ({"LIMIT_MW": 500000}, "speed", "warning", "below the card's 700 W", "-i 1 -pl 700"),
        ({"BUSY_PID": 4711}, "memory", "blocker", "used by process 4711", "kill 4711"),
        ({"HELD": "90000000000ULL"}, "memory", "warning", "no process", "fuser -v /dev/nvidia"),
        ({"SPLIT": 1}, "memory", "blocker", "split (MIG)", "-i 1 -mig 0"),
        ({"ERRORS": 3}, "errors", "blocker", "3 uncorrected", "--gpu-reset -i 1"),
        ({"ROW_PENDING": 1}, "errors", "warning", "waits for a reset", "--gpu-reset -i 1"),
        ({"ROW_LOST": 1}, "errors", "blocker", "could not be replaced", "have it changed"),
        ({"ECC": 0}, "errors", "warning", "ECC is off", "-i 1 -e 1"),
        ({"WIDTH": 4}, "links", "warning", "PCIe x4 of x16", "reseat"),
        ({"LINKS_UP": 12}, "links", "warning", "12 of 18 NVLinks", "nvlink --status"),
    ],
)
def test_an_ill_card_is_told_from_a_well_one(
    tmp_path: Path, flags: dict[str, Any], name: str, level: str, seen: str, mend: str
) -> None:
    found = {one.name: one for one in look(tmp_path, **flags)}
    ill = found[f"gpu 1 {name}"]
    assert ill.level == level
    assert seen in ill.seen
    assert ill.mend is not None
    assert mend in ill.mend
    assert {one.name for one in found.values() if one.level != "ok"} == {f"gpu 1 {name}"}


def look(folder: Path, **flags: object) -> list[Finding]:
    """Findings on the cards of a machine with the driver that `flags` describe."""
    health = system_nvml.health(str(build_driver(folder, **flags)))
    return card_findings(health, [], asked=None, host=this_host(), environment={})


def test_a_busy_card_ends_the_verb_with_1(paceline: Paceline, tmp_path: Path) -> None:
    outcome = paceline("doctor", "--json", env=machine(tmp_path / "driver", BUSY_PID=4711))
    assert outcome.code == 1, outcome
    assert finding(outcome, "gpu 1 memory")["level"] == "blocker"
    assert finding(outcome, "gpu 0 memory")["level"] == "ok"


def test_what_an_old_driver_does_not_say_is_unknown(tmp_path: Path) -> None:
    found = {one.name: one for one in look(tmp_path, OLD=1)}
    for name in ("memory", "speed", "errors"):
        told = found[f"gpu 0 {name}"]
        assert not told.is_known
        assert told.seen.startswith("unknown: ")


def asked_of(recipe: Path) -> Asked:
    return asked(read_settings(recipe), recipe=recipe, wheel_round=None)


def test_amd_cards_are_named_planned_and_their_health_is_unknown(tmp_path: Path) -> None:
    def run(*command: str) -> str:
        return json.dumps(AMD_SMI) if command[0] == "amd-smi" else ""

    recipe = REPOSITORY / "recipes/mi300x8-offline-vllm-rocm.toml"
    request = Request(asked=asked_of(recipe), out=tmp_path, submitter=None, environment={})
    diagnosis = examine(request, Host(name="amd", root=tmp_path, run=run))
    found = {one.name: one for one in diagnosis.findings}
    assert found["gpus"].seen == "8x AMD Instinct MI300X OAM, driver 6.10.5"
    assert not found["gpu health"].is_known
    assert found["model fits"].level == "ok"
    # Nothing of this host leaks into a host of another root.
    assert not found["host memory"].is_known
    assert diagnosis.plan is not None
    assert (diagnosis.plan["tensor_parallel"], diagnosis.plan["replicas"]) == (1, 8)
    assert diagnosis.plan["tokens_per_second_at_best"] == pytest.approx(27854)


def test_hidden_and_missing_cards_block_a_recipe_that_wants_them(
    paceline: Paceline, tmp_path: Path
) -> None:
    (tmp_path / "r.toml").write_text(RECIPE)
    env = machine(tmp_path / "driver") | {"CUDA_VISIBLE_DEVICES": "1"}
    hidden = finding(paceline("doctor", "r.toml", "--json", env=env), "gpus")
    assert hidden["level"] == "blocker"
    assert "hides 1 of 2" in hidden["seen"]
    assert hidden["mend"] == "unset CUDA_VISIBLE_DEVICES"
    env["CUDA_VISIBLE_DEVICES"] = "GPU-1"
    named = paceline("doctor", "--json", env=env)
    assert {one["name"] for one in named.json["findings"]} >= {"gpu 0 memory"}
    assert "hides 1 of 2" in finding(named, "gpus")["seen"]


def test_a_card_too_small_for_the_model_is_a_blocker_and_two_are_planned(
    paceline: Paceline, tmp_path: Path
) -> None:
    (tmp_path / "r.toml").write_text(RECIPE)
    flags = {"NAME": '"NVIDIA L40S"', "BYTES": "48305799168ULL", "CARDS": 4}
    env = machine(tmp_path / "driver", **flags)
    outcome = paceline("doctor", "r.toml", "--json", env=env)
    fits = finding(outcome, "model fits")
    assert fits["level"] == "blocker"
    assert ": 0 live sequences" in fits["seen"]
    assert "tensor_parallel=2" in fits["mend"]
    assert finding(outcome, "gpus used")["level"] == "warning"
    assert outcome.json["plan"]["tensor_parallel"] == 4
    assert outcome.json["plan"]["tokens_per_second_at_best"] is None


LLAMA_2_70B = {
    "model_type": "llama", "num_hidden_layers": 80, "hidden_size": 8192,
    "intermediate_size": 28672, "num_attention_heads": 64, "num_key_value_heads": 8,
    "vocab_size": 32000, "torch_dtype": "bfloat16",
}  # fmt: skip


@pytest.mark.parametrize(
    ("stored", "words", "held"),
    [
        (None, ("native",), "16 bit"),
        (None, ("native", "quantization=fp8-token"), "fp8, KV fp8"),
        (None, ("native", "quantization=fp8-token", "kv_dtype=bfloat16"), "fp8"),
        (None, ("reference",), "16 bit"),
        (None, ("managed",), "fp8, KV fp8"),
        (None, ("managed", "quantization=none"), "16 bit, KV fp8"),
        (("fp8", True), ("native",), "fp8, KV fp8"),
        (("fp8-token", False), ("native",), "fp8-token"),
        (("fp8-token", False), ("managed",), "fp8-token, KV fp8"),
        (("w4a16", False), ("native",), "w4a16"),
        (("w4a8", False), ("native",), "w4a8"),
        (("w4a8", True), ("native",), "w4a8, KV fp8"),
        (("w4a8", True), ("native", "quantization=none"), "16 bit"),
        (("w4a8", True), ("managed", "quantization=none"), "w4a8, KV fp8"),
        (("mxfp4", False), ("native", "kv_dtype=fp8"), "mxfp4, KV fp8"),
        (("nvfp4", False), ("native",), "nvfp4"),
    ],
)
def test_a_model_is_placed_as_its_engine_would_hold_it(
    tmp_path: Path, stored: tuple[str, bool] | None, words: tuple[str, ...], held: str
) -> None:
    config: dict[str, Any] = dict(LLAMA_2_70B)
    if stored is not None:
        name, is_kv_fp8 = stored
        group_len = {"mxfp4": 32, "nvfp4": 16}.get(name, 128)
        config["quantization_config"] = quantization_config(
            name, group_len=group_len, is_kv_fp8=is_kv_fp8
        )
    (tmp_path / "config.json").write_text(json.dumps(config))
    engine, *own = words
    settings = read_settings(
        None,
        (
            "run.benchmark=llama2-70b-99.9",
            f"engine.name={engine}",
            f"model.path={tmp_path}",
            *(f"engine.{engine}.{one}" for one in own),
        ),
    )
    where = placed(asked(settings, recipe=None, wheel_round=None), [("NVIDIA H200", 141 * 10**9)])
    assert isinstance(where, Placed)
    assert where.precision.name == held


def test_one_used_card_of_two_is_said(paceline: Paceline, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(RECIPE.replace("data_parallel = 2", ""))
    outcome = paceline("doctor", "r.toml", "--json", env=machine(tmp_path / "driver"))
    idle = finding(outcome, "gpus used")
    assert "1 of 2 cards" in idle["seen"]
    assert idle["mend"] == "--set engine.native.data_parallel=2"


def test_a_precision_that_the_checkpoint_decides_is_said_to_be_assumed(
    paceline: Paceline, tmp_path: Path
) -> None:
    env = machine(tmp_path / "driver")
    recipe = str(REPOSITORY / "recipes/h200x1-offline-native-w4a8.toml")
    outcome = paceline("doctor", recipe, "--json", env=env)
    assert (
        "(fp8, KV fp8; assumed, as the checkpoint decides" in finding(outcome, "model fits")["seen"]
    )
    assert outcome.json["plan"]["precision"] == "fp8, KV fp8 (assumed)"
    stated = ("--set", "engine.native.quantization=w4a8")
    outcome = paceline("doctor", recipe, "--json", *stated, env=env)
    assert "of weights (w4a8, KV fp8) on" in finding(outcome, "model fits")["seen"]
    assert outcome.json["plan"]["precision"] == "w4a8, KV fp8"
    drawn = ("--model", "random:llama2-70b", "--set", "run.mode=performance")
    outcome = paceline("doctor", recipe, "--json", *drawn, env=env)
    assert "of weights (16 bit, KV fp8) on" in finding(outcome, "model fits")["seen"]
    assert outcome.json["plan"]["precision"] == "16 bit, KV fp8"
