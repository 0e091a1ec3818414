"""Quantised checkpoints in transformers: the arithmetic that a format means, in plain numbers.

    weights      code * scale in float32 (w4a8: of four significant bits), then the engine's type
    activations  where the format has FP8 activations, what a linear layer reads is rounded to
                 codes and back: with the checkpoint's fixed scale, or a scale for each token
    KV cache     where the checkpoint says FP8, keys (after rotation) and values are rounded to
                 codes and back as they are stored

Nothing runs faster for it; it is what the other engines are held to.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from paceline.errors import CheckpointError
from paceline.native import NativeError
from paceline.native.formats import StoredFormat, stored_format

__all__ = ["load_quantized", "new_cache", "round_fp8", "stored_format_of"]

_LINEARS = ("self_attn.{}_proj", ("q", "k", "v", "o")), ("mlp.{}_proj", ("gate", "up", "down"))
_NORMS = ("input_layernorm.weight", "post_attention_layernorm.weight")
_KV_SCALES = "paceline_kv_scales"


def stored_format_of(path: Path) -> StoredFormat | None:
    """The format of a checkpoint's weights; None when they are not quantised.

    Raises
        CheckpointError  they are, in a way that is not run.
    """
    config = path / "config.json"
    if not config.is_file():
        return None
    try:
        return stored_format(json.loads(config.read_text()))
    except (ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{config} cannot be read: {error}.", hint="the download is damaged"
        ) from error
    except NativeError as error:
        raise CheckpointError(f"{path}: {error.message}", hint=error.hint) from error


def load_quantized(
    path: Path, stored: StoredFormat, *, dtype: Any, options: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """The model in `dtype` with its format's rounding in place, and what to say of it.

    Raises
        CheckpointError  a tensor is missing or damaged.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from paceline.native.checkpoint import SafetensorsSource

    try:
        source = SafetensorsSource(path)
        state, input_scales = _read(source, dtype)
        kv_scales = [source.kv_scale(layer) for layer in range(source.config.num_layers)]
    except NativeError as error:
        raise CheckpointError(error.message, hint=error.hint) from error
    config = AutoConfig.from_pretrained(str(path), local_files_only=True)
    del config.quantization_config
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.load_state_dict(state, assign=True)
    # Angles are no part of a checkpoint.
    model.model.rotary_emb = type(model.model.rotary_emb)(config=config)
    model = _placed(model, options.get("device_map"))
    takes_fp8 = stored.name in ("fp8", "fp8-token", "w4a8")
    for name, module in model.named_modules() if takes_fp8 else ():
        if isinstance(module, torch.nn.Linear) and name.startswith("model.layers."):
            module.register_forward_pre_hook(_rounding(input_scales.get(name)))
    if stored.is_kv_fp8:
        setattr(model, _KV_SCALES, kv_scales)
    return model.eval(), {
        "checkpoint_format": stored.name,
        "group_len": stored.group_len,
        "kv_dtype": "float8_e4m3fn" if stored.is_kv_fp8 else str(dtype).removeprefix("torch."),
        "activation_scales": "none" if not takes_fp8 else "fixed" if input_scales else "per token",
    }


def new_cache(model: Any) -> dict[str, Any]:
    """Arguments of `generate`: a cache that rounds to FP8, if the checkpoint asks for one."""
    scales = getattr(model, _KV_SCALES, None)
    return {} if scales is None else {"past_key_values": _fp8_cache(scales)}


def round_fp8(x: Any, scale: Any) -> Any:
    """Nearest e4m3 code of x / scale, clipped to 448, times scale; in float32, then x's type."""
    from paceline.native.fused import FP8_DTYPE, FP8_MAX

    codes = (x.float() / scale).clamp(-FP8_MAX, FP8_MAX).to(FP8_DTYPE)
    return (codes.float() * scale).to(x.dtype)


def _placed(model: Any, device_map: str | None) -> Any:
    """On the CPU, on one GPU, or its layers over several in turn ("auto")."""
    if device_map != "auto":
        return model if device_map is None else model.to(device_map)
    from accelerate import dispatch_model, infer_auto_device_map

    return dispatch_model(model, infer_auto_device_map(model))


def _read(source: Any, dtype: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Dequantised tensors by transformers' names, and the fixed scales by layer."""
    import torch

    from paceline.native.weights import dequantize

    host, everything = torch.device("cpu"), slice(None)
    state, input_scales = {}, {}

    def weight(name: str) -> None:
        part = source.part(name, rows=everything, columns=everything, device=host)
        state[f"{name}.weight"] = dequantize(part).to(dtype)
        if part.input_scale is not None:
            input_scales[name] = part.input_scale

    for layer in range(source.config.num_layers):
        prefix = f"model.layers.{layer}"
        for pattern, ends in _LINEARS:
            for end in ends:
                weight(f"{prefix}.{pattern.format(end)}")
        for name in _NORMS:
            state[f"{prefix}.{name}"] = source.vector(f"{prefix}.{name}", host).to(dtype)
    weight("model.embed_tokens")
    if source.config.tied_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    else:
        weight("lm_head")
    state["model.norm.weight"] = source.vector("model.norm.weight", host).to(dtype)
    return state, input_scales


def _rounding(fixed: Any) -> Any:
    """A hook that rounds what a linear layer reads."""
    from paceline.native.fused import FP8_MAX

    def hook(module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        del module
        x = inputs[0]
        if fixed is not None:
            return (round_fp8(x, fixed.to(x.device)), *inputs[1:])
        widest = x.float().abs().amax(dim=-1, keepdim=True)
        return (round_fp8(x, (widest / FP8_MAX).clamp(min=2.0**-126)), *inputs[1:])

    return hook


def _fp8_cache(scales: list[tuple[float, float]]) -> Any:
    """A cache that gives keys and values back as FP8 pages would."""
    from transformers import DynamicCache

    cache = DynamicCache()
    store = cache.update

    def update(keys: Any, values: Any, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        key_scale, value_scale = scales[layer_idx]
        keys, values = round_fp8(keys, key_scale), round_fp8(values, value_scale)
        return store(keys, values, layer_idx, *args, **kwargs)

    cache.update = update
    return cache
