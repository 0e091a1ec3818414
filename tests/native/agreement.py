"""How many samples come out the same in a narrower arithmetic as in float32.

    python agreement.py --weights MODEL.gguf --prompts IDS.json [--device cuda] [--new 128]

IDS.json holds lists of token ids. Prints, for each arithmetic, the fraction of samples whose
outputs are identical to float32's, and of output tokens before the first difference.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from paceline.native import Engine, EngineConfig, GenRequest

ARITHMETICS: dict[str, dict[str, str]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "bfloat16, FP8 KV": {"dtype": "bfloat16", "kv_dtype": "fp8"},
    "fp8-token, bf16 KV": {
        "dtype": "bfloat16",
        "quantization": "fp8-token",
        "kv_dtype": "bfloat16",
    },
    "fp8-token, FP8 KV": {"dtype": "bfloat16", "quantization": "fp8-token"},
    "fp8-tensor, FP8 KV": {"dtype": "bfloat16", "quantization": "fp8-tensor"},
}


def outputs(prompts: list[list[int]], max_new_tokens: int, **options: Any) -> list[list[int]]:
    engine = Engine(EngineConfig(max_context_len=2048, max_live_sequences=64, **options))
    engine.start()
    engine.add(
        GenRequest(request_id=i, token_ids=ids, max_new_tokens=max_new_tokens)
        for i, ids in enumerate(prompts)
    )
    results: dict[int, list[int]] = {}
    engine.run_until_idle(lambda result: results.__setitem__(result.request_id, result.token_ids))
    engine.close()
    return [results[i] for i in range(len(prompts))]


def common_prefix(first: list[int], second: list[int]) -> int:
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--save", type=Path, help="write float32's outputs here")
    given = parser.parse_args()
    prompts = json.loads(given.prompts.read_text())
    base: list[list[int]] = []
    for name, options in ARITHMETICS.items():
        found = outputs(prompts, given.new, weights=given.weights, device=given.device, **options)
        base = base or found
        same = sum(a == b for a, b in zip(base, found, strict=True))
        kept = sum(common_prefix(a, b) for a, b in zip(base, found, strict=True))
        total = sum(len(ids) for ids in base)
        sys.stdout.write(
            f"{name:22s} identical {same}/{len(base)}  before a difference {kept / total:.3f}\n"
        )
        if given.save and name == "float32":
            given.save.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
