"""One block of the model: from whole precision to the tensors that are stored.

Shape letters (this file)
    N   output width of a weight
    K   input width
    G   groups of K that share a scale
    L   length of a group
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from paceline.native.formats import PACKED_KINDS
from paceline.native.fused import FP8_MAX
from paceline.native.gemm import quantize_weight
from paceline.quantize import smooth
from paceline.quantize.calibrate import BlockStatistics, Calibration
from paceline.quantize.encode import Grid, encode_fp8, fp8_scale
from paceline.quantize.gptq import gptq
from paceline.quantize.layers import GROUPS, NORMS
from paceline.quantize.options import QuantizeOptions, group_len_of
from paceline.quantize.source import InputCheckpoint

__all__ = ["BlockRecord", "round_block"]


@dataclass(slots=True)
class BlockRecord:
    """What was done, for the document: by block, by group."""

    input_scales: dict[str, dict[str, float]] = field(default_factory=dict)
    kv_scales: dict[str, dict[str, float]] = field(default_factory=dict)
    smooth_factors: dict[str, dict[str, float]] = field(default_factory=dict)


def round_block(
    source: InputCheckpoint,
    index: int,
    options: QuantizeOptions,
    *,
    calibration: Calibration | None,
    record: BlockRecord,
) -> dict[str, Tensor]:
    """The stored tensors of one block, by their names within it."""
    weights, dtype, statistics = source.layer(index), source.kept_dtype, None
    group_len = group_len_of(options.format, options.group_len, source.config)
    if calibration is not None:
        if options.smooth_alpha is not None:
            seen = calibration.observe(weights)
            record.smooth_factors[str(index)] = smooth.fold(
                weights, seen.channel_max(), source.config, alpha=options.smooth_alpha
            )
        for name in NORMS:
            weights[name] = weights[name].to(dtype).float()
        statistics = calibration.observe(
            weights,
            grams_of=_first_grams(calibration, options),
            moves_on=not options.uses_gptq,
        )
    stored = {f"{name}.weight": weights[name].to(dtype) for name in NORMS}
    rounded = dict(weights)
    for group, names in GROUPS.items():
        parts = {name: weights[name] for name in names}
        if options.format in PACKED_KINDS:
            seen_by = statistics
            if calibration is not None and calibration.is_rounding and group != "qkv":
                # Behind products that are rounded already, as the engine will read it.
                seen_by = calibration.observe(rounded, grams_of=(group,))
            found, values = _four_bits(parts, group, options.format, group_len, seen_by)
            rounded |= values
        else:
            found = _eight_bits(parts, is_per_channel=options.format == "fp8-token")
        stored |= found
    if statistics is not None:
        stored |= _fixed_scales(statistics, options, index, record)
        if calibration is not None and options.uses_gptq:
            # As in the paper, a block sees what the rounded blocks before it give.
            calibration.advance(rounded)
    return stored


def _first_grams(calibration: Calibration, options: QuantizeOptions) -> tuple[str, ...]:
    """Groups whose Hessian is that of the block before any of it is rounded."""
    if not options.uses_gptq:
        return ()
    return ("qkv",) if calibration.is_rounding else tuple(GROUPS)


def _fixed_scales(
    statistics: BlockStatistics, options: QuantizeOptions, index: int, record: BlockRecord
) -> dict[str, Tensor]:
    """input_scale of each product and k_scale, v_scale of the cache, where the format has them."""

    def scale(stream: str) -> float:
        seen = statistics.magnitudes[stream]
        histogram = seen.of_tokens if options.percentile_of == "tokens" else seen.of_values
        widest = histogram.percentile(options.percentile)
        return max(widest / FP8_MAX, 2.0**-126)

    found: dict[str, Tensor] = {}
    if options.format == "fp8":
        scales = {group: scale(group) for group in GROUPS}
        record.input_scales[str(index)] = scales
        for group, names in GROUPS.items():
            found |= {f"{name}.input_scale": torch.tensor([scales[group]]) for name in names}
    if options.is_kv_fp8:
        scales = {"k": scale("key"), "v": scale("value")}
        record.kv_scales[str(index)] = scales
        found |= {f"self_attn.{k}_scale": torch.tensor([v]) for k, v in scales.items()}
    return found


def _eight_bits(parts: dict[str, Tensor], *, is_per_channel: bool) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    # Products that engines run as one share their scale, so that none is rounded a second time.
    widest = torch.stack([weight.abs().amax() for weight in parts.values()]).amax()
    for name, weight_NK in parts.items():
        if is_per_channel:
            codes_NK, scale_N = quantize_weight(weight_NK, per_channel=True)
            found |= {f"{name}.weight": codes_NK, f"{name}.weight_scale": scale_N[:, None]}
        else:
            scale = fp8_scale(widest)
            found[f"{name}.weight"] = encode_fp8(weight_NK, scale)
            found[f"{name}.weight_scale"] = scale.reshape(1).clone()
    return found


def _four_bits(
    parts: dict[str, Tensor],
    group: str,
    name: str,
    group_len: int,
    statistics: BlockStatistics | None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Stored tensors of a group's products, and the values that they stand for."""
    found: dict[str, Tensor] = {}
    values: dict[str, Tensor] = {}
    widest = max(float(weight.abs().amax()) for weight in parts.values())
    grid = Grid(name, group_len, Grid.nvfp4_global(widest) if name == "nvfp4" else 1.0)
    # Rows are rounded each by itself, and the group's products read the same inputs.
    stacked_NK = torch.cat(list(parts.values()))
    codes_NK, scale_NG = _codes(stacked_NK, group, grid, statistics)
    start = 0
    for part, weight_NK in parts.items():
        rows = slice(start, start + weight_NK.shape[0])
        start = rows.stop
        codes, scales = codes_NK[rows], scale_NG[rows]
        codes_NGL = codes.view(codes.shape[0], -1, group_len)
        values[part] = grid.values(codes_NGL, scales).flatten(1)
        found |= {f"{part}.{end}": t for end, t in grid.stored(codes, scales).items()}
    return found, values


def _codes(
    weight_NK: Tensor, group: str, grid: Grid, statistics: BlockStatistics | None
) -> tuple[Tensor, Tensor]:
    """Codes (N, K) and stored scales (N, G): by GPTQ where there is a Hessian, else to nearest."""
    if statistics is not None and group in statistics.hessians:
        return gptq(
            weight_NK,
            statistics.hessians[group],
            grid,
            num_tokens=statistics.num_tokens,
            crossed_KK=statistics.crossed.get(group),
        )
    value_NGL = weight_NK.view(weight_NK.shape[0], -1, grid.group_len)
    importance = None
    if statistics is not None:
        importance = statistics.sums_of_squares[group].view(-1, grid.group_len)
    scale_NG = grid.scales(value_NGL, importance)
    return grid.codes(value_NGL, scale_NG).flatten(1), scale_NG
