"""Weights of four bits: their layout, and what the compiler makes of their kernel for a GPU."""

from __future__ import annotations

import pytest
import torch

from paceline.native import packed, packed_sm90
from paceline.native.formats import pack_nibbles, round_significand


@pytest.mark.parametrize("block", [32, 64, 128])
def test_a_laid_out_weight_has_the_values_that_were_stored(block: int) -> None:
    torch.manual_seed(0)
    value_NK = torch.randint(-8, 8, (6, 256))
    scale_NG = torch.rand(6, 2) + 0.5
    stored = pack_nibbles((value_NK + 8).to(torch.uint8))
    weight = packed.PackedWeight(
        packed.lay_out(stored, block, "int4"), scale_NG.t(), None, "int4", block
    )
    want_NK = value_NK * scale_NG.repeat_interleave(128, dim=1)
    assert torch.equal(packed.widen(weight), want_NK)


def test_the_layout_for_hopper_holds_the_same_codes() -> None:
    torch.manual_seed(1)
    code_NK = torch.randint(0, 16, (16, 384), dtype=torch.uint8)
    laid_out = packed_sm90.lay_out(pack_nibbles(code_NK))
    assert laid_out.shape == (16, 192)
    assert torch.equal(packed_sm90.read_codes(laid_out), packed_sm90.sign_and_rest(code_NK))
    # Where lanes look: row 3, block 1, q 2, word 1 holds k = 32 + 8 and the three after it.
    word = int(laid_out[3].view(torch.int32)[16 + 2 * 4 + 1]) & 0xFFFFFFFF
    for i in range(4):
        for half, sign_bit in ((0, 8 * i + 7), (1, 8 * i + 3)):
            value = int(code_NK[3, 128 + 32 + 16 * half + 8 + i]) - 8
            assert word >> (16 * half + 4 * i) & 7 == (value if value >= 0 else -1 - value)
            assert word >> sign_bit & 1 == (value < 0)


def test_scales_become_normal_ones_whose_multiples_are_e4m3_numbers() -> None:
    torch.manual_seed(2)
    scale_NG = torch.exp2(torch.rand(8, 6) * 9 - 30).to(torch.bfloat16)
    ratio_NG, row_scale_N = packed.normal_scales(scale_NG)
    assert torch.equal(ratio_NG.float() * row_scale_N[:, None], scale_NG.float())
    assert bool((ratio_NG <= 32).all())
    assert bool((ratio_NG >= 2.0**-6).all())
    multiples = round_significand(torch.arange(-8, 8).float() * ratio_NG.float()[..., None])
    assert torch.equal(multiples.to(torch.float8_e4m3fn).float(), multiples)
    # What is wider than 2,048 times the least is said in the docstring.
    far, _ = packed.normal_scales(torch.tensor([[1.0, 2.0**-20]], dtype=torch.bfloat16))
    assert far[0, 1] == 2.0**-6
    # Groups, and whole outputs, of zeros.
    zeros = torch.tensor([[0.0, 1.0], [0.0, 0.0], [2.0**-126] * 2], dtype=torch.bfloat16)
    ratio_NG, row_scale_N = packed.normal_scales(zeros)
    assert bool(ratio_NG.isfinite().all())
    assert bool((row_scale_N > 0).all())


def test_a_weight_for_fp8_products_is_code_times_scale_in_four_significant_bits() -> None:
    torch.manual_seed(3)
    code_NK = torch.randint(0, 16, (4, 256), dtype=torch.uint8)
    scale_NG = (torch.rand(4, 2) + 0.1).to(torch.bfloat16)
    ratio_NG, row_scale_N = packed.normal_scales(scale_NG)
    weight = packed.PackedWeight(
        packed.lay_out(pack_nibbles(code_NK), 128, "int4-e4m3"),
        ratio_NG.t().contiguous(),
        row_scale_N,
        "int4-e4m3",
        128,
    )
    value_NK = (code_NK.float() - 8) * scale_NG.float().repeat_interleave(128, dim=1)
    mantissa, exponent = torch.frexp(value_NK)
    want_NK = torch.ldexp((mantissa * 16).round() / 16, exponent)
    assert torch.equal(packed.widen(weight), want_NK)
    assert not torch.equal(want_NK, value_NK)


@pytest.mark.parametrize("num_tokens", [1, 64, 512, 768, 1024])
def test_the_tile_of_tokens_is_the_one_whose_waves_are_shortest(num_tokens: int) -> None:
    tile = packed_sm90.tile_for(num_tokens, 8192, 132)
    assert tile == {1: 64, 64: 64, 512: 256, 768: 192, 1024: 256}[num_tokens]


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
def test_the_fp8_kernel_compiles_to_fp8_products() -> None:
    compiler = pytest.importorskip("triton.compiler", reason="triton is not installed")
    if not hasattr(packed._packed_linear, "arg_names") or not hasattr(
        packed._packed_linear, "create_binder"
    ):
        pytest.skip("kernels are interpreted here")
    from triton.backends.compiler import GPUTarget

    types = {
        "x_ptr": "*fp8e4nv",
        "x_scale_ptr": "*fp32",
        "packed_ptr": "*u8",
        "scale_ptr": "*bf16",
        "row_scale_ptr": "*fp32",
        "out_ptr": "*bf16",
        **dict.fromkeys(("num_tokens", "num_out", "width"), "i32"),
    }
    fixed = {
        "IS_FP8": True,
        "KIND": 0,
        "HAS_ROW_SCALE": True,
        "GROUP": 128,
        "BLOCK": 128,
        "TILE_N": 128,
        "TILE_T": 128,
    }
    names = packed._packed_linear.arg_names
    assert set(names) == {*types, *fixed}
    source = compiler.ASTSource(
        fn=packed._packed_linear,
        signature={name: types.get(name, "constexpr") for name in names},
        constexprs=fixed,
        attrs={
            (place,): [["tt.divisibility", 16]]
            for place, name in enumerate(names)
            if name in types and name != "num_tokens"
        },
    )
    compiled = compiler.compile(
        source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8, "num_stages": 3}
    )
    ptx = compiled.asm["ptx"]
    assert "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3" in ptx
    assert "ld.local" not in ptx
