"""Everything that only a GPU can prove, in one go, with a short table last.

    python tools/prove_on_gpu.py OUT                      all stages
    python tools/prove_on_gpu.py OUT kernels demo         some of them
    python tools/prove_on_gpu.py OUT bench --lengths FILE --samples 1200

Each stage is a command in a process of its own, with its output in OUT/STAGE.log and its JSON,
where it prints one, in OUT/STAGE.json. A stage that fails is named, and the others run; the exit
code is then 1. Stages that take the longest come last.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

PACELINE = (sys.executable, "-m", "paceline")


@dataclass(frozen=True)
class Stage:
    """A command, and the figures of its JSON that the table shows, as dotted paths."""

    name: str
    group: str
    command: tuple[str, ...]
    shown: tuple[str, ...] = ()


def demo(name: str, benchmark: str, *settings: str, engine: str = "native") -> Stage:
    """The embedded benchmark through LoadGen."""
    words = [word for setting in settings for word in ("--set", f"engine.{engine}.{setting}")]
    return Stage(
        f"demo-{name}",
        "demo",
        (
            *(*PACELINE, "run", "--json", "--engine", engine, "--benchmark", benchmark),
            *("--set", f"engine.{engine}.device=cuda", *words),
        ),
        ("verdict", "result", "tokens_per_second", "rouge1", "rouge2", "rougeL"),
    )


def stages(lengths: list[str], samples: int, layers: list[str]) -> list[Stage]:
    """All of them, quick ones first."""
    bench = (*PACELINE, "bench", "engine", "--json", *layers)
    whole = (*lengths, "--samples", str(samples))
    rates = ("tokens_per_second", "steady_tokens_per_second", "steady_decodes", "preemptions")
    return [
        Stage("doctor", "doctor", (*PACELINE, "doctor", "--json")),
        Stage(
            "kernels",
            "kernels",
            (sys.executable, "tests/native/kernel_checks.py", "--device", "cuda"),
        ),
        Stage(
            "tests", "kernels", (sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/native")
        ),
        demo("bf16", "smollm2-135m-99.9"),
        demo("fp8-tensor", "smollm2-135m-99", "quantization=fp8-tensor", "kv_dtype=fp8"),
        demo("fp8-token", "smollm2-135m-99", "quantization=fp8-token", "kv_dtype=fp8"),
        demo("reference", "smollm2-135m-99.9", engine="reference"),
        Stage("products", "products", (*PACELINE, "bench", "products", "--json")),
        Stage("steady-fp8", "steady", (*bench, *lengths, "--steady", "60"), rates),
        Stage(
            "steady-w4a8", "steady", (*bench, *lengths, "--steady", "60", *quantized("w4a8")), rates
        ),
        Stage("run-w4a8", "bench-w4a8", (*bench, *whole, *quantized("w4a8")), rates),
        Stage("run-fp8", "bench", (*bench, *whole), rates),
    ]


def quantized(name: str) -> tuple[str, str]:
    """The flag of a precision."""
    return ("--quantization", name)


def run(stage: Stage, out: Path, limit_s: float) -> tuple[str, float]:
    """Run a stage; what to show of it, and its seconds."""
    start_s = time.monotonic()
    words = list(stage.command)
    if stage.group == "demo":
        words += ["--out", str(out / stage.name)]
    with (out / f"{stage.name}.log").open("w") as log:
        try:
            done = subprocess.run(
                words, stdout=subprocess.PIPE, stderr=log, text=True, timeout=limit_s, check=False
            )
        except subprocess.TimeoutExpired:
            return f"FAILED: not done after {limit_s:g} s", time.monotonic() - start_s
        log.write(done.stdout)
    took_s = time.monotonic() - start_s
    try:
        facts = json.loads(done.stdout)
        (out / f"{stage.name}.json").write_text(done.stdout)
    except ValueError:
        facts = None
    said = told(facts, stage.shown) if facts is not None else done.stdout.strip()[-200:]
    if done.returncode == 0:
        return said, took_s
    lines = (out / f"{stage.name}.log").read_text(errors="replace").strip().splitlines()
    return f"FAILED ({done.returncode}): {said or ' / '.join(lines[-2:])}", took_s


def told(facts: object, names: tuple[str, ...]) -> str:
    """The figures named, those that are there."""
    found = []
    for name in names:
        value = facts
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            found.append(f"{name.rpartition('.')[2]} {value}")
    return ", ".join(found)


def main() -> int:
    """Run what was asked for; 1 when a stage failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("groups", nargs="*", help="doctor, kernels, demo, products, steady, bench")
    parser.add_argument("--lengths", type=Path)
    parser.add_argument("--samples", type=int, default=1200)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--limit-s", type=float, default=570.0, help="of one stage")
    chosen = parser.parse_args()
    lengths = ["--lengths", str(chosen.lengths)] if chosen.lengths else []
    layers = ["--layers", str(chosen.layers)] if chosen.layers else []
    known = stages(lengths, chosen.samples, layers)
    if strange := set(chosen.groups) - {stage.group for stage in known}:
        parser.error(f"no stages {', '.join(sorted(strange))}")
    chosen.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for stage in known:
        if not chosen.groups or stage.group in chosen.groups:
            said, took_s = run(stage, chosen.out, chosen.limit_s)
            rows.append((stage.name, f"{took_s:.1f} s", said))
            print(*rows[-1], sep="  ", flush=True)
    print("\n" + "\n".join(f"{name:<16}{took:>9}  {said}" for name, took, said in rows))
    return int(any(said.startswith("FAILED") for _, _, said in rows))


if __name__ == "__main__":
    sys.exit(main())
