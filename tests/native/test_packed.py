"""Weights of four bits: their layout, and what the compiler makes of their kernel for a GPU."""

from __future__ import annotations

import pytest
import torch

from paceline.native import packed
from paceline.native.formats import pack_nibbles


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


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
def test_the_fp8_kernel_compiles_for_hopper_to_few_operations_on_bytes() -> None:
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
        "row_scale_ptr": "*bf16",
        "out_ptr": "*bf16",
        **dict.fromkeys(("num_tokens", "num_out", "width"), "i32"),
    }
    fixed = {
        "IS_FP8": True,
        "KIND": 0,
        "HAS_ROW_SCALE": False,
        "GROUP": 128,
        "BLOCK": 128,
        "TILE_N": 128,
        "TILE_T": 128,
        "IS_ASM": True,
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
    # 64 codes a thread, four at a time; byte by byte there are some 300.
    assert ptx.count("prmt.b32") < 40
    assert "ld.local" not in ptx
