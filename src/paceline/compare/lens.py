"""Two models on the same tokens: how far their hidden states and their choices are apart.

Both read each sample's prompt followed by the first run's answer, in the reference engine's
arithmetic; what is compared are the rows that chose the answer's tokens.

    mean KL       of the next token's distribution: sum of p log(p / q), p the first model's
    top-1         share of rows in which both would choose the same token
    by layer      the same share if the model ended there (final norm and output layer applied to
                  the block's output), and the relative error of the block's output

Shape letters (this file)
    R   rows that chose a token
    V   vocabulary
    D   model width
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from paceline.compare.answers import Side
from paceline.engines.reference import load_model

__all__ = ["compare_logits"]


def compare_logits(a: Side, b: Side, *, num_samples: int) -> dict[str, Any]:
    """Compare on the first samples, evenly spaced.

    Raises
        CheckpointError  a model cannot be loaded.
    """
    total = len(a.answers)
    chosen = [i * total // num_samples for i in range(min(num_samples, total))]
    first = list(_rows(a, a, chosen))
    layers: list[dict[str, float]] = []
    kl = same = rows = 0.0
    for one, other in zip(first, _rows(b, a, chosen), strict=True):
        log_p_RV, log_q_RV = one["logits"].log_softmax(dim=-1), other["logits"].log_softmax(dim=-1)
        kl += float((log_p_RV.exp() * (log_p_RV - log_q_RV)).sum())
        same += float((log_p_RV.argmax(dim=-1) == log_q_RV.argmax(dim=-1)).sum())
        rows += len(log_p_RV)
        _add_layers(layers, one, other)
    return {
        "samples": len(chosen),
        "tokens": int(rows),
        "mean_kl": kl / rows,
        "top1": same / rows,
        "layers": [
            {"top1": x["same"] / rows, "relative_error": (x["error"] / x["size"]) ** 0.5}
            for x in layers
        ],
    }


def _add_layers(layers: list[dict[str, float]], one: dict[str, Any], other: dict[str, Any]) -> None:
    for index, (x, y) in enumerate(zip(one["layers"], other["layers"], strict=True)):
        if index == len(layers):
            layers.append({"same": 0.0, "error": 0.0, "size": 0.0})
        sums = layers[index]
        sums["same"] += float((x["top"] == y["top"]).sum())
        sums["error"] += float((x["state"] - y["state"]).square().sum())
        sums["size"] += float(x["state"].square().sum())


def _rows(side: Side, answered: Side, chosen: list[int]) -> Iterator[dict[str, Any]]:
    """A model's logits and block outputs at the rows that chose `answered`'s tokens."""
    engine = side.config.engine_config
    dtype = str(getattr(engine, "dtype", "float32"))
    if dtype == "auto":
        dtype = str(side.facts.get("dtype", "float32"))
    device = "cuda" if side.facts.get("device") == "cuda" and torch.cuda.is_available() else "cpu"
    model, _ = load_model(side.config.model_path, dtype, device, torch)
    for index in chosen:
        prompt, answer = answered.prompts[index], answered.answers[index]
        ids = torch.tensor([[*prompt.tolist(), *answer.tolist()]], device=model.device)
        with torch.inference_mode():
            out = model(ids, output_hidden_states=True, use_cache=False)
            begin, end = len(prompt) - 1, ids.shape[1] - 1
            # The last state has the final norm already.
            states = [state[0, begin:end] for state in out.hidden_states[1:]]
            normed = [model.model.norm(state) for state in states[:-1]] + states[-1:]
            yield {
                "logits": out.logits[0, begin:end].float().cpu(),
                "layers": [
                    {"state": state.float().cpu(), "top": _choice(model, row)}
                    for state, row in zip(states, normed, strict=True)
                ],
            }


def _choice(model: Any, state_RD: Tensor) -> Tensor:
    top: Tensor = model.lm_head(state_RD).argmax(dim=-1).cpu()
    return top
