"""Build the demo's calibration set from its text: demo_calibration.jsonl -> .parquet.

Run it after changing a sample: python tools/build_demo_calibration.py. The tests rebuild the
frame and compare, so a forgotten run fails.
"""

from __future__ import annotations

import json

from paceline.config import embedded_model
from paceline.mlperf.frames import build_chat_frame, write_frame
from paceline.mlperf.tokenizer import load_tokenizer
from paceline.quantize import demo_calibration


def main() -> None:
    target = demo_calibration()
    lines = target.with_suffix(".jsonl").read_text().splitlines()
    tokenizer = load_tokenizer(embedded_model())
    frame = build_chat_frame([json.loads(line) for line in lines], tokenizer.encode_batch)
    write_frame(frame, target)
    print(f"{target}: {len(frame)} samples, {frame['tok_input_length'].sum()} prompt tokens")


if __name__ == "__main__":
    main()
