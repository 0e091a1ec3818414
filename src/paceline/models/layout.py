"""The tensors that a Llama's config.json asks for: names, shapes and types.

A quantised checkpoint's are those of compressed-tensors' layout, as `paceline quantize` writes
them and vLLM reads them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paceline.errors import CheckpointError

__all__ = ["Expected", "Model", "expected_tensors", "read_model"]

_WHOLE = ("F32", "F16", "BF16")
_SCALES = ("F32", "F16", "BF16")
_LAYOUTS = {
    "float-quantized": "fp8",
    "pack-quantized": "int4",
    "mxfp4-pack-quantized": "mxfp4",
    "nvfp4-pack-quantized": "nvfp4",
}
# Bits of a group's scale, by layout.
_SCALE_BITS = {"int4": 16, "mxfp4": 8, "nvfp4": 8}


@dataclass(frozen=True, slots=True)
class Expected:
    """A tensor that must be there; `shapes` lists those that may be."""

    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """What config.json says of a Llama.

    `layout` is how quantised weights lie in the file, `format` what they and the activations are:
    a name of `paceline quantize --format`, else the layout's. Both are None where weights are not
    quantised.
    """

    num_layers: int
    hidden: int
    inner: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    vocabulary: int
    tied: bool
    dtype: str
    layout: str | None
    format: str | None
    group_len: int
    has_fixed_inputs: bool
    is_kv_fp8: bool

    @property
    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """(outputs, inputs) of each linear layer of a block."""
        heads, kv_heads = self.num_heads * self.head_size, self.num_kv_heads * self.head_size
        return {
            "self_attn.q_proj": (heads, self.hidden),
            "self_attn.k_proj": (kv_heads, self.hidden),
            "self_attn.v_proj": (kv_heads, self.hidden),
            "self_attn.o_proj": (self.hidden, heads),
            "mlp.gate_proj": (self.inner, self.hidden),
            "mlp.up_proj": (self.inner, self.hidden),
            "mlp.down_proj": (self.hidden, self.inner),
        }

    @property
    def linear_parameters(self) -> int:
        return self.num_layers * sum(n * k for n, k in self.linear_shapes.values())

    @property
    def other_parameters(self) -> int:
        """Embeddings, the output layer and norms."""
        copies = 1 if self.tied else 2
        return copies * self.vocabulary * self.hidden + (2 * self.num_layers + 1) * self.hidden

    @property
    def linear_bits(self) -> float:
        """Bits of a weight of the linear layers, its scales included, as stored."""
        if self.layout == "fp8":
            return 8.0
        if self.layout is not None:
            return 4.0 + _SCALE_BITS[self.layout] / max(self.group_len, 1)
        return 32.0 if self.dtype == "float32" else 16.0

    def kv_bytes(self, bits: int) -> int:
        """Bytes of the cache for one token."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_size * bits // 8


def read_model(folder: Path) -> Model:
    """Read config.json.

    Raises
        CheckpointError  there is none, or it is not a Llama's.
    """
    path = folder / "config.json"
    try:
        raw = json.loads(path.read_text())
        if raw.get("model_type") != "llama":
            raise CheckpointError(
                f"{path}: model_type is {raw.get('model_type')!r}; Llama models are read.",
                hint="name the folder of a Llama checkpoint",
            )
        return _model(raw)
    except OSError as error:
        raise CheckpointError(
            f"{folder} has no config.json that can be read ({error.strerror}).",
            hint="name a Hugging Face folder",
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is damaged: {type(error).__name__}: {error}.", hint="fetch it again"
        ) from error


def _model(raw: dict[str, Any]) -> Model:
    stated = raw.get("quantization_config") or {}
    groups = list((stated.get("config_groups") or {}).values())
    layout = _LAYOUTS.get(str(stated.get("format")))
    if stated and layout is None:
        raise CheckpointError(
            f"config.json: quantisation {stated.get('quant_method')!r}, format "
            f"{stated.get('format')!r} is not known.",
            hint=f"known: {', '.join(_LAYOUTS)}",
        )
    weights = groups[0].get("weights") or {} if groups else {}
    inputs = groups[0].get("input_activations") or {} if groups else {}
    heads = raw["num_attention_heads"]
    return Model(
        num_layers=raw["num_hidden_layers"],
        hidden=raw["hidden_size"],
        inner=raw["intermediate_size"],
        num_heads=heads,
        num_kv_heads=raw.get("num_key_value_heads") or heads,
        head_size=raw.get("head_dim") or raw["hidden_size"] // heads,
        vocabulary=raw["vocab_size"],
        tied=bool(raw.get("tie_word_embeddings", False)),
        dtype=str(raw.get("dtype") or raw.get("torch_dtype") or "float32"),
        layout=layout,
        format=_format(layout, weights, inputs),
        group_len=weights.get("group_size") or 0,
        has_fixed_inputs=bool(inputs) and inputs.get("dynamic") is False,
        is_kv_fp8=stated.get("kv_cache_scheme") is not None,
    )


def _format(
    layout: str | None, weights: Mapping[str, Any], inputs: Mapping[str, Any]
) -> str | None:
    """The format of one config group; `native.formats` reads the same, and runs no other."""
    if layout == "fp8":
        return "fp8-token" if weights.get("strategy") == "channel" else "fp8"
    if layout == "int4" and not inputs:
        return "w4a16"
    if layout == "int4" and (inputs.get("num_bits"), inputs.get("type")) == (8, "float"):
        return "w4a8"
    return layout


def expected_tensors(model: Model) -> dict[str, Expected]:
    """Every tensor by its name."""
    table = (model.vocabulary, model.hidden)
    found = {
        "model.embed_tokens.weight": Expected((table,), _WHOLE),
        "model.norm.weight": Expected(((model.hidden,),), _WHOLE),
    }
    if not model.tied:
        found["lm_head.weight"] = Expected((table,), _WHOLE)
    for index in range(model.num_layers):
        prefix = f"model.layers.{index}"
        for name, shape in model.linear_shapes.items():
            found |= {f"{prefix}.{name}.{e}": x for e, x in _linear(model, shape).items()}
        for name in ("input_layernorm", "post_attention_layernorm"):
            found[f"{prefix}.{name}.weight"] = Expected(((model.hidden,),), _WHOLE)
        if model.is_kv_fp8:
            for which in "kv":
                name = f"{prefix}.self_attn.{which}_scale"
                found[name] = Expected(((), (1,)), _SCALES)
    return found


def _linear(model: Model, shape: tuple[int, int]) -> dict[str, Expected]:
    rows, columns = shape
    one = Expected(((), (1,)), _SCALES)
    if model.layout is None:
        return {"weight": Expected((shape,), _WHOLE)}
    if model.layout == "fp8":
        scale = Expected(((), (1,), (rows, 1), (rows,)), _SCALES)
        found = {"weight": Expected((shape,), ("F8_E4M3",)), "weight_scale": scale}
        return found | ({"input_scale": one} if model.has_fixed_inputs else {})
    groups = (rows, columns // max(model.group_len, 1))
    if model.layout == "int4":
        return {
            "weight_packed": Expected(((rows, columns // 8),), ("I32",)),
            "weight_scale": Expected((groups,), _SCALES),
            "weight_shape": Expected(((2,),), ("I64", "I32")),
        }
    packed = Expected(((rows, columns // 2),), ("U8",))
    if model.layout == "mxfp4":
        return {"weight_packed": packed, "weight_scale": Expected((groups,), ("U8",))}
    return {
        "weight_packed": packed,
        "weight_scale": Expected((groups,), ("F8_E4M3",)),
        "weight_global_scale": one,
    }
