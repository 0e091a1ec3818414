"""A checkpoint in, a quantised checkpoint out, one block at a time.

The host holds one block, the shard in the making and, while it calibrates, the hidden states of
the calibration set; the device one block. Every rounding is to nearest, nothing is drawn at
random, and sums are taken in a fixed order: the same inputs on the same machine with the same
number of threads give the same bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from paceline.native.model import ModelConfig
from paceline.quantize.blocks import BlockRecord, round_block
from paceline.quantize.calibrate import Calibration
from paceline.quantize.document import calibration_record, calibration_text
from paceline.quantize.encode import read_by_token
from paceline.quantize.forward import whole
from paceline.quantize.layers import parameters
from paceline.quantize.options import QuantizeOptions, group_len_of
from paceline.quantize.samples import CalibrationSet
from paceline.quantize.scheme import quantization_config
from paceline.quantize.source import InputCheckpoint
from paceline.quantize.store import CheckpointWriter

__all__ = ["quantize"]

_log = logging.getLogger(__name__)

# Bytes of a weight, scales included, at most.
_BYTES = {"fp8": 1.0, "fp8-token": 1.01}


def quantize(
    model: Path,
    out: Path,
    options: QuantizeOptions,
    *,
    samples: CalibrationSet | None,
    progress: Callable[[str, float], None],
    tell: Callable[[str], None] = _log.warning,
) -> dict[str, Any]:
    """Write OUT; returns what was done, as calibration.json holds it.

    What a killed run of the same inputs finished is kept and gone on with; `tell` gets a sentence
    when that is so.

    Raises
        InputError          options that do not go together, or OUT is there.
        CheckpointError     MODEL is missing, damaged, or quantised already.
        EnvironmentProblem  the disk is full, or GPTQ cannot invert.
    """
    options.check(is_calibrated=samples is not None)
    device = torch.device(options.device)
    with torch.inference_mode():
        source = InputCheckpoint(model, device)
        group_len = group_len_of(options.format, options.group_len, source.config)
        done = calibration_record(options, group_len=group_len, model=model, samples=samples)
        with CheckpointWriter(
            out,
            needed_bytes=_size(source.config, options.format),
            inputs=_digest(done, options, source),
            tell=tell,
        ) as writer:
            used = samples if options.uses_samples else None
            record = _write_weights(source, writer, options, used, progress=progress)
            stated = quantization_config(
                options.format, group_len=group_len, is_kv_fp8=options.is_kv_fp8
            )
            source.write_config(writer, stated)
            done |= dataclasses.asdict(record)
            writer.write_json("calibration.json", done)
            writer.write_text("calibration.md", calibration_text(done))
    progress("blocks", 1.0)
    return done


def _write_weights(
    source: InputCheckpoint,
    writer: CheckpointWriter,
    options: QuantizeOptions,
    samples: CalibrationSet | None,
    *,
    progress: Callable[[str, float], None],
) -> BlockRecord:
    begin, num_blocks, calibration = writer.standing.next_block, source.config.num_layers, None
    record = BlockRecord(**writer.standing.record)
    top = source.top()
    if samples is not None:
        embed = top["model.embed_tokens.weight"]
        calibration = Calibration(
            samples,
            source.config,
            embed,
            states=writer.standing.states,
            read=read_by_token if options.makes_up_for_reads else whole,
        )

    def note(next_block: int) -> None:
        # Before the first block they are the embeddings, after the last nobody reads them.
        is_between = calibration is not None and 0 < next_block < num_blocks
        states = calibration.states if calibration is not None and is_between else None
        writer.note(next_block, dataclasses.asdict(record), states)

    is_begun = bool(writer.standing.shards)
    if not is_begun and writer.add({k: v.to(source.kept_dtype) for k, v in top.items()}):
        note(0)
    del top
    for index in range(begin, num_blocks):
        progress("blocks", index / num_blocks)
        stored = round_block(source, index, options, calibration=calibration, record=record)
        if writer.add({f"model.layers.{index}.{name}": tensor for name, tensor in stored.items()}):
            note(index + 1)
    if begin < num_blocks:
        writer.flush()
        note(num_blocks)
    writer.finish()
    return record


def _digest(done: Mapping[str, Any], options: QuantizeOptions, source: InputCheckpoint) -> str:
    """Of everything that decides the bytes of the weights."""
    decides = {"done": done, "options": dataclasses.asdict(options), "model": str(source.config)}
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def _size(config: ModelConfig, name: str) -> int:
    """Bytes of the checkpoint, near enough to know whether the disk has room."""
    numbers = parameters(config)
    linear = numbers["linear"] * _BYTES.get(name, 0.6)
    return int(linear) + 2 * (numbers["embeddings"] + numbers["norms"])
