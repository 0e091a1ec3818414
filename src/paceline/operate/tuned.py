"""The recipe that a search writes: its origin's settings with the winner's, and what it beat."""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paceline.config import Setting
from paceline.submission import system_nvml

__all__ = ["hardware", "rejections", "tuned_recipe"]


def hardware() -> str:
    """The machine in a line: its cards, else its processor."""
    cards = system_nvml.gpus()
    if cards:
        names = sorted({card.name for card in cards})
        return f"{len(cards)} x {', '.join(names)}"
    return f"{os.cpu_count()} cores, {_processor()}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def tuned_recipe(
    settings: Mapping[str, Setting],
    engine: str,
    values: Mapping[str, Any],
    facts: Mapping[str, Any],
) -> str:
    """TOML with every setting that is not a default, under a header that says what it beat."""
    judged = facts["confirmation"]
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    head = [
        f"Tuned for speed by `paceline tune {facts['recipe']}`, {today}, on {hardware()}.",
        (
            f"Beat that recipe's own settings by {judged['gain']:.1%} tokens/s (95 % interval "
            f"{judged['gain_low']:.1%} to {judged['gain_high']:.1%}),"
        ),
        (
            f"faster in {judged['num_faster']} of {len(judged['pairs'])} pairs of measurements, "
            f"after {facts['num_trials']} trials of {facts['space_size']:,} settings."
        ),
        "What it changed:",
    ]
    head += [
        f"  engine.{engine}.{name}: {facts['default']['values'][name]} -> {value}"
        for name, value in values.items()
        if value != facts["default"]["values"][name]
    ]
    if facts["accuracy"] is not None:
        head.append(
            f"Accuracy settings changed ({', '.join(facts['accuracy']['changed'])}); an accuracy "
            f"run with them: {facts['accuracy']['verdict']}."
        )
    head += rejections(facts)
    kept = {name: one.value for name, one in settings.items() if one.origin != "default"}
    kept |= {f"engine.{engine}.{name}": value for name, value in values.items()}
    lines = [f"# {line}\n" for line in head]
    return "".join(lines) + "\n" + "".join(f"{name} = {_toml(v)}\n" for name, v in kept.items())


def rejections(facts: Mapping[str, Any]) -> list[str]:
    """What was faster and did not pass the accuracy gate, a line each."""
    engine, default = facts["engine"], facts["default"]["values"]
    return [
        f"Rejected by the accuracy gate though faster: trial {one['trial']}, "
        + ", ".join(
            f"engine.{engine}.{name} {default[name]} -> {one['values'][name]}"
            for name in one["accuracy"]["changed"]
        )
        + f": {one['accuracy']['reason']}."
        for one in facts["rejected"]
    ]


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple | list):
        return json.dumps(list(value))
    return json.dumps(value) if isinstance(value, str) else repr(value)
