"""Every kernel against its definition, at random shapes, into poisoned outputs.

Runs on a GPU (values), or on the CPU under TRITON_INTERPRET=1 (addresses, masks, scales: the
interpreter's rounding to FP8 is not the hardware's, so codes are compared on a GPU only).

    python kernel_checks.py [--device cuda] [--rounds 3] [NAME ...]
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from paceline.native import (
    attention,
    decode_sm89,
    fused,
    gemm,
    packed,
    packed_sm90,
    prefill,
    rotary,
    sample,
)
from paceline.native.formats import pack_nibbles
from paceline.native.fused import FP8_DTYPE, Quantized, Target
from paceline.native.rotary import KVScale, RopeConfig

_real_empty = torch.empty


def _poisoned(*args: Any, **kwargs: Any) -> Tensor:
    """torch.empty whose every byte is set: NaN in FP8, and far from any answer elsewhere."""
    tensor = _real_empty(*args, **kwargs)
    tensor.view(-1).view(torch.uint8).fill_(0x7F)
    return tensor


class Case:
    """A device, its random numbers, and the error allowed there."""

    def __init__(self, device: str, seed: int) -> None:
        self.device = device
        self.rng = random.Random(seed)
        self.is_gpu = device == "cuda"
        torch.manual_seed(seed)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32, std: float = 1.0) -> Tensor:
        return (torch.randn(shape) * std).to(dtype).to(self.device)

    def ints(self, values: Any) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=self.device)

    def dtype(self) -> torch.dtype:
        choices = [torch.bfloat16, torch.float16] if self.is_gpu else [torch.float32]
        return self.rng.choice(choices)

    def scalar(self, value: float) -> Tensor:
        return torch.tensor(value, device=self.device)


def close(got: Tensor, want: Tensor, *, relative: float, name: str) -> None:
    """The norm of the difference against the norm of the answer; a NaN never passes."""
    got, want = got.float(), want.float()
    error = (got - want).norm() / want.norm().clamp(min=1e-20)
    assert bool(error <= relative), f"{name}: relative error {float(error):.2e} > {relative:.0e}"


def same_quantized(case: Case, got: Any, want: Any, name: str) -> None:
    """Scales to 2 ulp; codes equal but for ties that the last bit of a float32 decides."""
    if not isinstance(want, Quantized):
        close(got, want, relative=1e-2 if case.is_gpu else 1e-5, name=name)
        return
    close(got.scale, want.scale, relative=1e-6, name=f"{name} scale")
    if case.is_gpu:
        got_values, want_values = got.codes_TD.float(), want.codes_TD.float()
        assert bool(got_values.isfinite().all()), f"{name}: a code was not written"
        differing = float((got_values != want_values).float().mean())
        assert differing < 2e-2, f"{name}: {differing:.2%} of the codes differ"
        close(got_values, want_values, relative=1e-2, name=f"{name} codes")


def targets(case: Case) -> list[Target]:
    fixed = case.scalar(case.rng.choice([0.01, 0.05]))
    return [Target(False), Target(True, fixed), Target(True)]


def check_add_rms_norm(case: Case) -> None:
    tokens, width = case.rng.randint(1, 40), case.rng.choice([48, 576, 1024, 8192])
    for target in targets(case):
        residual = case.normal(tokens, width, dtype=case.dtype(), std=3.0)
        delta = case.rng.choice([None, case.normal(tokens, width, dtype=residual.dtype)])
        weight = case.normal(width, dtype=residual.dtype)
        kept = residual.clone()
        want = fused.add_rms_norm_ref(kept, delta, weight, eps=1e-5, target=target)
        got = fused.add_rms_norm(residual, delta, weight, eps=1e-5, target=target)
        same_quantized(case, got, want, f"add_rms_norm {target.mode}")
        close(residual, kept, relative=1e-6, name="add_rms_norm residual")


def check_silu_mul(case: Case) -> None:
    tokens, width = case.rng.randint(1, 20), case.rng.choice([160, 1536, 4100, 28672])
    for target in targets(case):
        x = case.normal(tokens, 2 * width, dtype=case.dtype())
        got, want = fused.silu_mul(x, target=target), fused.silu_mul_ref(x, target=target)
        same_quantized(case, got, want, f"silu_mul {target.mode}")


def check_quantize_rows(case: Case) -> None:
    x = case.normal(case.rng.randint(1, 40), case.rng.choice([64, 576, 8192]), dtype=case.dtype())
    x[0] = 0
    for target in targets(case)[1:]:
        want = fused.quantize_rows_ref(x, target=target)
        same_quantized(case, fused.quantize_rows(x, target=target), want, "quantize_rows")


def _cache(case: Case, dtype: torch.dtype, *, pages: int, heads: int, page_len: int, d: int) -> Any:
    shape = (pages, heads, page_len, d)
    kv_dtype = case.rng.choice([dtype, FP8_DTYPE]) if case.is_gpu else dtype
    keys, values = (case.normal(*shape).to(kv_dtype) for _ in range(2))
    scale = KVScale(0.5, 0.25) if kv_dtype == FP8_DTYPE else KVScale()
    return keys, values, scale


def check_rotary_write(case: Case) -> None:
    heads, group, d = case.rng.choice([(1, 1, 64), (2, 3, 64), (8, 8, 128), (2, 4, 16)])
    tokens, pages, page_len = case.rng.randint(1, 30), 9, case.rng.choice([16, 32])
    dtype = case.dtype()
    keys, values, scale = _cache(case, dtype, pages=pages, heads=heads, page_len=page_len, d=d)
    table = rotary.rotary_table(RopeConfig(theta=1e4, head_size=d), 512, torch.device(case.device))
    qkv = case.normal(tokens, (group + 2) * heads * d, dtype=dtype)
    position = case.ints([case.rng.randrange(512) for _ in range(tokens)])
    place = case.ints(case.rng.sample(range(page_len, pages * page_len), tokens))
    options = {"position_T": position, "place_T": place, "scale": scale}
    want_cache = (keys.clone(), values.clone())
    want = rotary.rotary_write_ref(qkv, table, cache=want_cache, **options)
    got = rotary.rotary_write(qkv, table, cache=(keys, values), **options)
    tight = 1e-2 if case.is_gpu else 1e-5
    close(got, want, relative=tight, name="rotary_write q")
    close(keys, want_cache[0], relative=tight, name="rotary_write k")
    close(values, want_cache[1], relative=tight, name="rotary_write v")


def _paged(case: Case, lengths: list[int], *, heads: int, d: int, dtype: torch.dtype) -> Any:
    """A cache in which each length's tokens lie on shuffled pages of its own."""
    page_len = case.rng.choice([16, 32, 64])
    counts = [-(-length // page_len) for length in lengths]
    free = list(range(1, sum(counts) + 1))
    case.rng.shuffle(free)
    keys, values, scale = _cache(
        case, dtype, pages=len(free) + 1, heads=heads, page_len=page_len, d=d
    )
    table = torch.zeros((len(lengths) + 1, max([1, *counts])), dtype=torch.int32)
    for slot, count in enumerate(counts):
        table[slot, :count] = torch.tensor([free.pop() for _ in range(count)], dtype=torch.int32)
    return attention.PagedKV(keys, values, table.to(case.device), scale)


def check_decode_attention(case: Case, *, uses_cuda_source: bool = False) -> None:
    heads, group, d = case.rng.choice([(1, 1, 64), (3, 3, 64), (8, 8, 128), (2, 5, 128)])
    if uses_cuda_source:
        heads, group, d = case.rng.choice([(8, 8, 128), (2, 5, 128), (1, 1, 128)])
    most = 1500 if case.is_gpu else 90
    count = case.rng.choice([1, 3, 40, 300]) if case.is_gpu else case.rng.randint(1, 3)
    lengths = [case.rng.randint(1, most) for _ in range(count)] + [0]
    dtype = case.dtype()
    kv = _paged(case, lengths, heads=heads, d=d, dtype=dtype)
    runs = kv.keys_PHNd.dtype == FP8_DTYPE and d == 128
    if uses_cuda_source and not runs:
        keys, values = kv.keys_PHNd.to(FP8_DTYPE), kv.values_PHNd.to(FP8_DTYPE)
        kv = attention.PagedKV(keys, values, kv.page_table_SI, KVScale(0.5, 0.25))
    q = case.normal(len(lengths), heads * group, d, dtype=dtype, std=2.0)
    decodes = attention.Decodes(case.ints(list(range(len(lengths)))), case.ints(lengths))
    for out_scale in [None, case.scalar(0.01)] if case.is_gpu else [None]:
        out_dtype = FP8_DTYPE if out_scale is not None else dtype
        got = _poisoned(q.shape, dtype=out_dtype, device=case.device)
        want = _real_empty(q.shape, dtype=out_dtype, device=case.device)
        options: Any = {"out_scale": out_scale}
        can_run = decode_sm89.can_run
        try:
            if not uses_cuda_source:
                decode_sm89.can_run = lambda q, keys: False
            else:
                assert can_run(q, kv.keys_PHNd)
            attention.decode_attention(q, kv, decodes, out_DQd=got, **options)
        finally:
            decode_sm89.can_run = can_run
        attention.decode_attention_ref(q, kv, decodes, out_DQd=want, **options)
        tight = 3e-2 if out_scale is not None else (1e-2 if case.is_gpu else 1e-5)
        close(got, want, relative=tight, name=f"decode_attention {dtype} {kv.keys_PHNd.dtype}")
        assert not got[-1].float().any(), "a padding row is not zero"


def check_decode_sm89(case: Case) -> None:
    if case.is_gpu:
        check_decode_attention(case, uses_cuda_source=True)


def check_chunk_attention(case: Case) -> None:
    heads, group, d = case.rng.choice([(1, 1, 64), (3, 3, 64), (2, 8, 128), (2, 4, 16)])
    most = 400 if case.is_gpu else 60
    spans = [
        (case.rng.choice([0, case.rng.randint(1, most)]), case.rng.randint(1, most))
        for _ in range(case.rng.randint(1, 4))
    ]
    dtype = case.dtype()
    kv = _paged(case, [start + n for start, n in spans], heads=heads, d=d, dtype=dtype)
    rows = [sum(n for _, n in spans[:i]) for i in range(len(spans))]
    tiles = [(i, f) for i, (_, n) in enumerate(spans) for f in range(0, n, prefill.TILE)]
    chunks = prefill.Chunks(
        slot_B=case.ints(list(range(len(spans)))),
        row_B=case.ints(rows),
        start_B=case.ints([start for start, _ in spans]),
        len_B=case.ints([n for _, n in spans]),
        chunk_J=case.ints([i for i, _ in tiles]),
        first_J=case.ints([f for _, f in tiles]),
    )
    q = case.normal(sum(n for _, n in spans), heads * group, d, dtype=dtype, std=2.0)
    got = _poisoned(q.shape, dtype=dtype, device=case.device)
    want = _real_empty(q.shape, dtype=dtype, device=case.device)
    prefill.chunk_attention(q, kv, chunks, out_TQd=got, out_scale=None)
    prefill.chunk_attention_ref(q, kv, chunks, out_TQd=want, out_scale=None)
    close(got, want, relative=1e-2 if case.is_gpu else 1e-5, name=f"chunk_attention {dtype}")


def check_argmax_rows(case: Case) -> None:
    rows, vocab = case.rng.randint(1, 20), case.rng.choice([50, 2048, 5000])
    logits = case.normal(rows, vocab).round(decimals=1)
    eos = torch.tensor([2, 7], device=case.device)
    bans = case.ints([case.rng.randint(0, 1) for _ in range(rows)])
    got, num_bad = sample.argmax_rows(logits.clone(), bans, eos)
    want, _ = sample.argmax_rows_ref(logits.clone(), bans, eos)
    assert got.tolist() == want.tolist(), "argmax_rows: an id differs"
    assert int(num_bad) == 0
    logits[rows // 2, vocab // 3] = float("nan")
    assert int(sample.argmax_rows(logits, bans, eos)[1]) == 1, "argmax_rows: a NaN passed"


def check_linear(case: Case) -> None:
    if not case.is_gpu:
        return
    tokens, width, out = case.rng.randint(1, 300), 16 * case.rng.randint(2, 60), 640
    for per_channel in (False, True):
        codes, scale = gemm.quantize_weight(case.normal(out, width), per_channel=per_channel)
        for target in targets(case)[1:]:
            x = fused.quantize_rows_ref(
                case.normal(tokens, width, dtype=torch.bfloat16, std=4.0), target=target
            )
            layer = gemm.Linear(codes, scale, target.scale)
            got = gemm.linear(x, layer, torch.bfloat16)
            close(got, gemm.linear_ref(x, layer, torch.bfloat16), relative=1e-2, name="linear")


def check_packed_linear(case: Case) -> None:
    kinds = [(128, "int4"), (128, "int4-e4m3"), (64, "int4-e4m3"), (32, "fp4"), (16, "fp4")]
    group, kind = case.rng.choice(kinds)
    width = (128 if group == 128 else 64) * case.rng.randint(1, 6)
    tokens, out = case.rng.randint(1, 150), case.rng.randint(1, 200)
    is_fp8 = kind == "int4-e4m3"
    weight = packed.PackedWeight(
        torch.randint(0, 256, (out, width // 2), dtype=torch.uint8).to(case.device),
        scales_of(case, width // group, out, torch.bfloat16),
        (torch.rand(out) + 0.5).to(case.device) if kind != "int4" else None,
        kind,
        packed.block_len_of(width, group),
    )
    dtype = torch.bfloat16 if case.is_gpu else torch.float32
    x = case.normal(tokens, width, dtype=dtype, std=4.0)
    if is_fp8:
        x = fused.quantize_rows_ref(x, target=Target(True))
    got = packed.packed_linear(x, weight, dtype)
    want = packed.packed_linear_ref(x, weight, dtype)
    close(got, want, relative=1e-2 if case.is_gpu else 1e-5, name=f"packed_linear {kind} {group}")


def scales_of(case: Case, groups: int, out: int, dtype: torch.dtype) -> Tensor:
    """(G, N) of all of the scales that a weight for FP8 products may have, 2^-6 to 32."""
    return torch.exp2(torch.rand(groups, out) * 11 - 6).to(dtype).to(case.device)


def check_packed_sm90(case: Case) -> None:
    if not case.is_gpu or torch.cuda.get_device_capability() != (9, 0):
        return
    group = 128 * case.rng.choice([1, 1, 2, 4])
    width, out = group * case.rng.randint(1, 9), 16 * case.rng.randint(1, 60)
    # More tiles than programs as well, so that a program goes from one to the next.
    tokens = case.rng.choice([1, 65, 128, case.rng.randint(66, 400), 128 * 23])
    stored = torch.randint(0, 256, (out, width // 2), dtype=torch.uint8, device=case.device)
    assert packed_sm90.can_hold(out, group, stored.device)
    weight = packed.PackedWeight(
        packed_sm90.lay_out(stored),
        scales_of(case, width // group, out, torch.bfloat16),
        # So small that no float16 result overflows.
        (torch.rand(out, device=case.device) + 0.5) * 2.0**-8,
        "int4-e4m3",
        128,
        is_for_sm90=True,
    )
    values = case.normal(tokens, width, dtype=torch.bfloat16, std=4.0)
    x = fused.quantize_rows_ref(values, target=Target(True))
    want = packed.packed_linear_ref(x, weight, torch.float32)
    scales = (x.scale, weight.scale_GN, weight.row_scale_N)
    for dtype in (torch.bfloat16, torch.float16):
        for tile_t in (None, *packed_sm90.TILES_T):
            got = _poisoned((tokens, out), dtype=dtype, device=case.device)
            packed_sm90.launch(x.codes_TD, weight.packed, scales, got, tile_t=tile_t)
            close(got, want, relative=1e-2, name=f"packed_sm90 {tokens}x{out}x{width} {tile_t}")


def check_packed_sm90_codes(case: Case) -> None:
    """All of the codes with all of the scales, exactly: a token for each input, 1 there."""
    if not case.is_gpu or torch.cuda.get_device_capability() != (9, 0):
        return
    for first in range(0, 11 * 128, 128):
        # Consecutive bfloat16 from 2^-6; an output each.
        bits = torch.arange(first, first + 128) + 0x3C80
        scale = bits.to(torch.int16).view(torch.bfloat16).to(case.device)
        codes = torch.arange(128, device=case.device).expand(128, 128) % 16
        stored = pack_nibbles(codes)
        weight = packed.PackedWeight(
            packed_sm90.lay_out(stored),
            scale[None, :].contiguous(),
            torch.ones(128, device=case.device),
            "int4-e4m3",
            128,
            is_for_sm90=True,
        )
        ones = torch.eye(128, device=case.device).to(FP8_DTYPE)
        got = torch.empty((128, 128), dtype=torch.bfloat16, device=case.device)
        scales = (torch.ones(128, device=case.device), weight.scale_GN, weight.row_scale_N)
        packed_sm90.launch(ones, weight.packed, scales, got)
        want = packed.widen(weight).t().to(torch.bfloat16)
        assert torch.equal(got, want), f"packed_sm90: a code of a scale from bfloat16 {first}"


CHECKS: dict[str, Callable[[Case], None]] = {
    name.removeprefix("check_"): function
    for name, function in list(globals().items())
    if name.startswith("check_")
}


def run_check(name: str, *, device: str, rounds: int) -> None:
    """Run one check at `rounds` random shapes; outputs of every kernel are poisoned."""
    torch.empty = _poisoned
    try:
        for seed in range(rounds):
            CHECKS[name](Case(device, seed))
    finally:
        torch.empty = _real_empty


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(CHECKS))
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    failed = []
    for name in options.names:
        try:
            run_check(name, device=options.device, rounds=options.rounds)
            sys.stdout.write(f"ok      {name}\n")
        except (AssertionError, RuntimeError, ValueError) as error:
            failed.append(name)
            sys.stdout.write(f"FAILED  {name}: {str(error)[:600]}\n")
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
