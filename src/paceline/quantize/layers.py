"""The linear layers of a Llama block: their names, shapes, and which share an input.

Products that read the same activation are run as one by engines (query, key and value; gate and
up), so they share the scales that belong to a whole weight.

Shape letters (this file)
    N   output width of a weight
    K   input width
"""

from __future__ import annotations

from paceline.native.model import ModelConfig

__all__ = ["GROUPS", "NORMS", "TOP_WEIGHTS", "group_of", "linear_shapes", "parameters"]

# Name of what a group reads -> its products.
GROUPS = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "out": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
NORMS = ("input_layernorm", "post_attention_layernorm")
TOP_WEIGHTS = ("model.embed_tokens", "lm_head")


def linear_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """(N, K) of each linear layer of a block."""
    width, inner = config.hidden_size, config.intermediate_size
    heads = config.num_heads * config.head_size
    kv_heads = config.num_kv_heads * config.head_size
    return {
        "self_attn.q_proj": (heads, width),
        "self_attn.k_proj": (kv_heads, width),
        "self_attn.v_proj": (kv_heads, width),
        "self_attn.o_proj": (width, heads),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
    }


def group_of(name: str) -> str:
    """The group that a linear layer belongs to."""
    return next(group for group, names in GROUPS.items() if name in names)


def parameters(config: ModelConfig) -> dict[str, int]:
    """Numbers of weights: linear layers, embeddings (output included), norms."""
    heads = 1 if config.tied_embeddings else 2
    return {
        "linear": config.linear_parameters,
        "embeddings": heads * config.vocab_size * config.hidden_size,
        "norms": (2 * config.num_layers + 1) * config.hidden_size,
    }
