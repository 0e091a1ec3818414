"""The numbers behind a checkpoint: percentiles, GPTQ, SmoothQuant, grids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from toys import calibration_of, save_llama

from paceline.engines.reference_quantized import round_fp8
from paceline.native.formats import fp4_values, pack_nibbles, power_of_two, unpack_nibbles
from paceline.native.model import ModelConfig
from paceline.quantize import smooth
from paceline.quantize.calibrate import Calibration
from paceline.quantize.encode import Grid, read_by_token, round_codes
from paceline.quantize.forward import block_forward
from paceline.quantize.gptq import gptq
from paceline.quantize.layers import GROUPS
from paceline.quantize.source import InputCheckpoint
from paceline.quantize.statistics import NUM_BINS, Histogram

CPU = torch.device("cpu")


@given(st.lists(st.integers(1, 400), min_size=1, max_size=6), st.floats(0.5, 99.99))
@example([1, 124, 400, 400, 400], 99.9375)
@settings(max_examples=60, deadline=None)
def test_a_percentile_is_numpys_to_a_bin_however_the_pieces_are_cut(
    sizes: list[int], percent: float
) -> None:
    rng = np.random.default_rng(sum(sizes))
    # In float32, as the histogram has them: near 300 it is 3e-5 from one number to the next.
    pieces = [
        np.abs(rng.standard_normal(size) * 3.0**i).astype(np.float32)
        for i, size in enumerate(sizes)
    ]
    histogram = Histogram()
    for piece in pieces:
        histogram.add(torch.from_numpy(piece))
    every = np.concatenate(pieces)
    exact = float(np.percentile(every, percent, method="inverted_cdf"))
    bin_width = histogram.bound / NUM_BINS
    assert exact - 1e-5 <= histogram.percentile(percent) <= exact + bin_width + 1e-5
    assert histogram.percentile(100.0) == pytest.approx(float(every.max()))


def test_zeros_alone_have_a_percentile_of_zero() -> None:
    histogram = Histogram()
    histogram.add(torch.zeros(7))
    assert histogram.percentile(99.9) == 0.0


@pytest.mark.parametrize("kind", ["int4", "fp4"])
def test_a_code_is_the_nearest_of_all_sixteen(kind: str) -> None:
    values = torch.linspace(-9, 9, 4001)
    table = torch.arange(16, dtype=torch.uint8)
    means = table.float() - 8 if kind == "int4" else fp4_values(table)
    nearest = (values[:, None] - means[None, :]).abs().amin(dim=1)
    codes = round_codes(values, kind)
    own = (values - (codes.float() - 8 if kind == "int4" else fp4_values(codes))).abs()
    assert torch.allclose(own, nearest, atol=1e-6)


def test_nibbles_and_powers_of_two_come_back() -> None:
    codes = torch.randint(0, 16, (5, 32), dtype=torch.uint8)
    assert torch.equal(unpack_nibbles(pack_nibbles(codes)), codes)
    exponent = torch.arange(255, dtype=torch.uint8)
    exact = torch.tensor([2.0 ** (int(e) - 127) for e in exponent], dtype=torch.float64)
    assert torch.equal(power_of_two(exponent).double(), exact)


@pytest.mark.parametrize("name", ["w4a16", "mxfp4", "nvfp4"])
def test_the_chosen_scale_is_never_worse_than_the_widest_values(name: str) -> None:
    torch.manual_seed(2)
    weight = torch.randn(16, 4, 32) * torch.rand(16, 4, 1)
    grid = Grid(name, 32, Grid.nvfp4_global(float(weight.abs().max())))
    chosen = grid.scales(weight)
    fitting = grid._candidates(weight.abs().amax(dim=-1))[0]

    def error(scale: torch.Tensor) -> torch.Tensor:
        return (grid.values(grid.codes(weight, scale), scale) - weight).square().sum(dim=-1)

    assert bool((error(chosen) <= error(fitting) + 1e-6).all())
    assert bool((error(chosen) < error(fitting)).any())


def test_four_significant_bits_cost_w4a8_nothing_once_scales_are_chosen_for_them() -> None:
    torch.manual_seed(4)
    weight = torch.randn(32, 8, 128) * (torch.rand(32, 8, 1) + 0.5)

    def error(name: str, scale: torch.Tensor) -> float:
        grid = Grid(name, 128)
        return float((grid.values(grid.codes(weight, scale), scale) - weight).square().sum())

    whole = Grid("w4a16", 128).scales(weight)
    chosen = Grid("w4a8", 128).scales(weight)
    assert error("w4a8", chosen) < 1.01 * error("w4a16", whole)
    # What it would cost with the scales of int4 alone.
    assert error("w4a8", whole) > 1.03 * error("w4a16", whole)


def test_a_value_of_w4a8_takes_the_code_whose_rounded_number_is_nearest() -> None:
    grid, scale = Grid("w4a8", 64), torch.tensor([1.1328125, 1.375]).to(torch.bfloat16)
    value = torch.linspace(-11, 11, 2001).expand(2, 2001)
    table = grid.values(torch.arange(16, dtype=torch.uint8).expand(2, 16), scale)
    nearest = (value[:, :, None] - table[:, None, :]).abs().amin(dim=-1)
    found = grid.values(grid.codes(value, scale), scale)
    assert torch.equal((value - found).abs(), nearest)


def test_a_group_of_zeros_stays_zero_and_finite() -> None:
    for name in ("w4a16", "w4a8", "mxfp4", "nvfp4"):
        grid = Grid(name, 32, Grid.nvfp4_global(0.0))
        scale = grid.scales(torch.zeros(2, 1, 32))
        assert bool((grid.effective(scale) > 0).all())
        assert not grid.values(grid.codes(torch.zeros(2, 1, 32), scale), scale).any()


@pytest.mark.parametrize("name", ["w4a16", "w4a8", "mxfp4", "nvfp4"])
def test_gptq_lowers_the_error_of_the_layers_output(name: str) -> None:
    """Against rounding to nearest with the same grid, on inputs whose channels go together."""
    torch.manual_seed(3)
    mix = torch.randn(128, 128)
    x = torch.randn(512, 128) @ mix
    weight = torch.randn(64, 128)
    grid = Grid(name, 32, Grid.nvfp4_global(float(weight.abs().max())))

    def output_error(codes: torch.Tensor, scale: torch.Tensor) -> float:
        rounded = grid.values(codes.view(64, -1, 32), scale).flatten(1)
        return float(((rounded - weight) @ x.t()).square().sum())

    groups = weight.view(64, -1, 32)
    scale = grid.scales(groups)
    nearest = output_error(grid.codes(groups, scale).flatten(1), scale)
    assert output_error(*gptq(weight, x.t() @ x, grid, num_tokens=512)) < 0.6 * nearest


def test_gptq_makes_up_for_the_rounding_of_inputs() -> None:
    """Most inputs lie under the middle of two codes, 128 and 144, and are read 5 % too small."""
    torch.manual_seed(8)
    x = (135 + torch.randn(2048, 128)) / 256
    x[:, 0] = 448 / 256
    y, weight, grid = read_by_token(x), torch.randn(64, 128), Grid("w4a8", 32)

    def output_error(codes: torch.Tensor, scale: torch.Tensor) -> float:
        rounded = grid.values(codes.view(64, -1, 32), scale).flatten(1)
        return float((rounded @ y.t() - weight @ x.t()).square().sum())

    unaware = output_error(*gptq(weight, x.t() @ x, grid, num_tokens=2048))
    found = gptq(weight, y.t() @ y, grid, num_tokens=2048, crossed_KK=x.t() @ y)
    assert output_error(*found) < 0.8 * unaware


def test_calibration_reads_activations_as_the_reference_engine_does() -> None:
    x = torch.randn(9, 64, generator=torch.Generator().manual_seed(2))
    x[4] = 0.0
    scale = (x.abs().amax(dim=1, keepdim=True) / 448).clamp(min=2.0**-126)
    assert torch.equal(read_by_token(x), round_fp8(x, scale))


def test_gptq_of_inputs_that_do_not_go_together_is_rounding_to_nearest() -> None:
    """With H the identity no error can be made up for by another column."""
    torch.manual_seed(4)
    weight = torch.randn(32, 128)
    grid = Grid("w4a16", 64)
    codes, scale = gptq(weight, torch.eye(128), grid, num_tokens=128)
    groups = weight.view(32, -1, 64)
    assert torch.equal(scale, grid.scales(groups))
    assert torch.equal(codes, grid.codes(groups, scale).flatten(1))


def test_gptq_survives_a_channel_that_is_always_zero() -> None:
    torch.manual_seed(5)
    x = torch.randn(200, 64)
    x[:, 7] = 0.0
    codes, scale = gptq(torch.randn(8, 64), x.t() @ x, Grid("w4a16", 32), num_tokens=len(x))
    assert bool(torch.isfinite(scale.float()).all())
    assert codes.shape == (8, 64)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("toy"), dtype="float32")


def calibration_on(source: InputCheckpoint, toy: Path) -> Calibration:
    embed = source.top()["model.embed_tokens.weight"]
    return Calibration(calibration_of(toy), source.config, embed)


def outputs(calibration: Calibration, weights: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    return list(calibration._run(weights, lambda name, x: None))


def test_the_block_is_transformers_block(toy: Path) -> None:
    """The hidden states that calibration sees are those of the model."""
    from transformers import LlamaForCausalLM

    source = InputCheckpoint(toy, CPU)
    calibration = calibration_on(source, toy)
    model = LlamaForCausalLM.from_pretrained(toy).eval()
    prompt = torch.from_numpy(calibration.samples.prompts[0]).long()[None]
    with torch.inference_mode():
        states = model(prompt, output_hidden_states=True).hidden_states
        mine = outputs(calibration, source.layer(0))[0]
    assert torch.allclose(mine, states[1][0], atol=2e-5)


def test_smoothquant_leaves_the_block_as_it_is_and_evens_its_channels(toy: Path) -> None:
    source = InputCheckpoint(toy, CPU)
    calibration, weights = calibration_on(source, toy), source.layer(0)
    weights["input_layernorm"][5] *= 40.0  # a wide channel, as large models have
    before = outputs(calibration, weights)
    seen = calibration.observe(weights).channel_max()
    smooth.fold(weights, seen, source.config, alpha=0.5)
    after = outputs(calibration, weights)
    for one, other in zip(before, after, strict=True):
        assert torch.allclose(one, other, atol=1e-3 * float(one.abs().max()))
    now = calibration.observe(weights).channel_max()

    def spread(widths: torch.Tensor) -> float:
        return float(widths.max() / widths.median())

    assert spread(now["qkv"]) < 0.5 * spread(seen["qkv"])


def test_the_hessian_is_the_sum_of_products_of_inputs(toy: Path) -> None:
    source = InputCheckpoint(toy, CPU)
    calibration, weights = calibration_on(source, toy), source.layer(0)
    kept: dict[str, torch.Tensor] = {}

    def tap(name: str, x: torch.Tensor) -> None:
        kept[name] = torch.cat((kept[name], x)) if name in kept else x

    for _ in calibration._run(weights, tap):
        pass
    statistics = calibration.observe(weights, grams_of=GROUPS)
    for name, hessian in statistics.hessians.items():
        assert torch.allclose(hessian, kept[name].t() @ kept[name], rtol=1e-4, atol=1e-3)
    widest = kept["key"].abs().amax()
    assert statistics.magnitudes["key"].of_values.widest == pytest.approx(float(widest))


def test_what_products_read_is_rounded_on_its_way_through_the_block(toy: Path) -> None:
    """Hessians are of what is read, crossed sums of both, and the outputs those of the engine."""
    source = InputCheckpoint(toy, CPU)
    samples, embed = calibration_of(toy), source.top()["model.embed_tokens.weight"]
    plain = Calibration(samples, source.config, embed)
    rounding = Calibration(samples, source.config, embed, read=read_by_token)
    weights = source.layer(0)
    given: list[torch.Tensor] = []
    for _ in plain._run(weights, lambda name, x: given.append(x) if name == "qkv" else None):
        pass
    x = torch.cat(given)
    y = read_by_token(x)
    seen = rounding.observe(weights, grams_of=("qkv",))
    assert torch.allclose(seen.hessians["qkv"], y.t() @ y, rtol=1e-4, atol=1e-3)
    assert torch.allclose(seen.crossed["qkv"], x.t() @ y, rtol=1e-4, atol=1e-3)
    assert set(seen.hessians) == set(seen.crossed) == {"qkv"}
    assert plain.observe(weights, grams_of=("qkv",)).crossed == {}
    for one, other in zip(outputs(plain, weights), outputs(rounding, weights), strict=True):
        assert 1e-4 < float((one - other).norm() / one.norm()) < 0.1


def test_a_block_needs_no_more_than_its_tensors(toy: Path) -> None:
    source = InputCheckpoint(toy, CPU)
    config: ModelConfig = source.config
    x = torch.randn(3, config.hidden_size)
    table = torch.ones(3, 2, config.head_size // 2)
    seen: list[str] = []
    block_forward(
        x, source.layer(1), config, table_X2e=table, tap=lambda name, _: seen.append(name)
    )
    assert seen == ["qkv", "key", "value", "out", "gate_up", "down"]
