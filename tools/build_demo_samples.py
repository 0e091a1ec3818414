"""Build the demo's dataset from its text: demo_samples.jsonl -> demo_samples.parquet.

Run it after changing a sample: python tools/build_demo_samples.py. The tests rebuild the frame
and compare, so a forgotten run fails.
"""

from __future__ import annotations

import json
from pathlib import Path

from paceline.config import demo_dataset, embedded_model
from paceline.mlperf.frames import build_chat_frame, write_frame
from paceline.mlperf.tokenizer import load_tokenizer


def main() -> None:
    target = demo_dataset()
    lines = target.with_suffix(".jsonl").read_text().splitlines()
    tokenizer = load_tokenizer(embedded_model())
    frame = build_chat_frame([json.loads(line) for line in lines], tokenizer.encode_batch)
    write_frame(frame, Path(target))
    print(f"{target}: {len(frame)} samples, {frame['tok_input_length'].sum()} prompt tokens")


if __name__ == "__main__":
    main()
