"""The host's memory does not grow with the number of blocks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

# Writes a checkpoint of random numbers, one file a block, and quantises it; no transformers,
# whose own memory would hide ours. Read before each block: memory that no file backs.
CHILD = """
import ctypes, json, sys
from pathlib import Path
import numpy as np, torch
from safetensors.torch import save_file
import paceline.quantize.store as store
from paceline.quantize import CalibrationSet, QuantizeOptions, quantize

torch.set_num_threads(1)
folder, num_layers = Path(sys.argv[1]), int(sys.argv[2])
width, inner, vocab = 1024, 2816, 512
shapes = {f"self_attn.{n}_proj": (width, width) for n in "qkvo"}
shapes |= {f"mlp.{n}_proj": (inner, width) for n in ("gate", "up")}
shapes["mlp.down_proj"] = (width, inner)
places = {}
def save(tensors, number):
    save_file(tensors, folder / "in" / f"model-{number}.safetensors")
    places.update(dict.fromkeys(tensors, f"model-{number}.safetensors"))
(folder / "in").mkdir()
for layer in range(num_layers):
    stem = f"model.layers.{layer}"
    block = {f"{stem}.{n}.weight": 0.02 * torch.randn(s) for n, s in shapes.items()}
    for norm in ("input_layernorm", "post_attention_layernorm"):
        block[f"{stem}.{norm}.weight"] = torch.ones(width)
    save({n: t.bfloat16() for n, t in block.items()}, layer)
names = ("model.embed_tokens.weight", "lm_head.weight")
top = {name: torch.randn(vocab, width).bfloat16() for name in names}
save(top | {"model.norm.weight": torch.ones(width).bfloat16()}, "top")
(folder / "in" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": width,
          "intermediate_size": inner, "num_hidden_layers": num_layers, "num_attention_heads": 16,
          "num_key_value_heads": 16, "vocab_size": vocab, "rms_norm_eps": 1e-5}
(folder / "in" / "config.json").write_text(json.dumps(config))
store.SHARD_BYTES = 16 << 20
seen = []
def progress(what, part):
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what is freed but kept says nothing of need
    fields = dict(l.split(":", 1) for l in Path("/proc/self/status").read_text().splitlines())
    seen.append(int(fields["RssAnon"].split()[0]) >> 10)
prompts = tuple(np.arange(3 + i, 40 + i, dtype=np.int32) for i in range(4))
samples = CalibrationSet(name="drawn", sha256="0" * 64, prompts=prompts, rows=(0, 1, 2, 3),
                         provenance="drawn", is_verified=False)
options = QuantizeOptions(format=sys.argv[3], is_kv_fp8=True)
quantize(folder / "in", folder / "out", options, samples=samples, progress=progress)
print(json.dumps(seen))
"""


def megabytes_by_block(folder: Path, *, num_layers: int, name: str) -> list[int]:
    folder.mkdir()
    arguments = [sys.executable, "-c", CHILD, str(folder), str(num_layers), name]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=900)
    return list(json.loads(done.stdout))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fp8", "w4a16"])
def test_memory_is_that_of_a_block_however_many_there_are(tmp_path: Path, name: str) -> None:
    """24 blocks are 620 MB of bfloat16; one is 26 MB, or 51 MB in float32."""
    few = megabytes_by_block(tmp_path / "few", num_layers=4, name=name)
    many = megabytes_by_block(tmp_path / "many", num_layers=24, name=name)
    assert len(many) == 25
    assert max(many) < max(few) + 30
