"""Choose the demo's samples: prompts whose answers noise of a format's size leaves as they are.

    python tools/demo_candidates.py POOL.jsonl
    python tools/choose_demo_samples.py POOL.jsonl OUT.jsonl --device cuda --checkpoint DIR ...
    python tools/build_demo_samples.py      OUT.jsonl in the set's place: the frame beside it

An answer stays what it is as long as each of its tokens stays the first choice. The margin of a
token is its logit less the greatest other one, given the prompt and the answer up to there; one
pass over prompt and answer has them all. For each prompt that is asked first in float32, whose
margins must all be positive, and then in draws of noise: the weights of every linear layer are
disturbed by normal numbers of `--noise` times the root mean square of their row, what the layers
read is rounded to FP8 with a scale a token, keys and values with one scale. A token's distance is
the mean of its margins over the draws in their standard deviations, a sample's that of its
nearest token.

A format's rounding is no normal noise: it is the same for every prompt. So every answer must also
have a margin of `--least` in each `--checkpoint`: formats rounded to the nearest, uncalibrated,
which are worse than what the set is to judge.

Those are taken that stand farthest, no sentence twice, few of a frame and of a way of asking;
samples of the set as it is stay when they stand far enough. OUT.facts.jsonl has what was measured,
and `--facts` chooses again from it. With an empty POOL the set is only asked, and nothing chosen.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paceline.config import demo_dataset, embedded_model
from paceline.engines.reference import load_model
from paceline.engines.reference_quantized import round_fp8
from paceline.mlperf.frames import chat_prompt
from paceline.mlperf.tokenizer import load_tokenizer
from paceline.native.fused import FP8_MAX

Record = dict[str, Any]
TOKENS_AT_ONCE = 16384
LONG_TOKENS = 250
KINDS = ("summary", "qa", "rewrite", "reason")


def linears(model: Any) -> Iterator[tuple[str, Any]]:
    """The linear layers of the blocks."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name.startswith("model.layers."):
            yield name, module


class Noise:
    """A model's linear layers, disturbed draw by draw."""

    def __init__(self, model: Any, size: float) -> None:
        self._size = size
        self._layers = [(name, module, module.weight.clone()) for name, module in linears(model)]
        self._hooks: list[Any] = []

    def draw(self, seed: int) -> None:
        """New weights by this seed, and activations in FP8."""
        self.remove()
        first = self._layers[0][2]
        chance = torch.Generator(device=first.device).manual_seed(seed)
        for name, module, weight in self._layers:
            row = weight.square().mean(dim=1, keepdim=True).sqrt()
            noise = torch.randn(weight.shape, generator=chance, device=weight.device)
            module.weight.copy_(weight + self._size * row * noise)
            self._hooks.append(module.register_forward_pre_hook(round_inputs))
            if name.endswith(("k_proj", "v_proj")):
                self._hooks.append(module.register_forward_hook(round_output))

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        for _, module, weight in self._layers:
            module.weight.copy_(weight)


def round_inputs(module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """FP8, a scale a token."""
    del module
    widest = inputs[0].abs().amax(dim=-1, keepdim=True).clamp(min=2.0**-100)
    return (round_fp8(inputs[0], widest / FP8_MAX), *inputs[1:])


def round_output(module: Any, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    """FP8, one scale."""
    del module, inputs
    rounded: Tensor = round_fp8(output, output.abs().amax() / FP8_MAX)
    return rounded


def margins(model: Any, prompts: Sequence[list[int]], answers: Sequence[list[int]]) -> list[Tensor]:
    """(A,) margins of each answer's tokens, in logits."""
    device = next(model.parameters()).device
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]) + len(answers[i]))
    found: list[Tensor] = [torch.empty(0)] * len(prompts)
    while order:
        longest = len(prompts[order[-1]]) + len(answers[order[-1]])
        take = max(1, TOKENS_AT_ONCE // longest)
        batch, order = order[-take:], order[:-take]
        ids = torch.zeros(len(batch), longest, dtype=torch.long)
        for row, i in enumerate(batch):
            whole = torch.tensor(prompts[i] + answers[i])
            ids[row, : len(whole)] = whole
        # Padding stands after what is read, and no token looks ahead.
        hidden = model.model(ids.to(device), use_cache=False).last_hidden_state
        lengths = [len(answers[i]) for i in batch]
        read = [
            hidden[row, len(prompts[i]) - 1 : len(prompts[i]) - 1 + len(answers[i])]
            for row, i in enumerate(batch)
        ]
        logits = model.lm_head(torch.cat(read)).float()
        right = torch.tensor([x for i in batch for x in answers[i]], device=device)[:, None]
        own = logits.gather(1, right)[:, 0]
        logits.scatter_(1, right, -torch.inf)
        for i, margin in zip(batch, (own - logits.amax(dim=1)).cpu().split(lengths), strict=True):
            found[i] = margin
    return found


def tokens_of(records: list[Record]) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts and answers, EOS included."""
    tokenizer = load_tokenizer(embedded_model())
    asked = [chat_prompt(x["system_prompt"], x["question"]) for x in records]
    (eos,) = tokenizer.encode_batch(["<|im_end|>"])[0]
    answers = tokenizer.encode_batch([x["response"] for x in records])
    return [list(ids) for ids in tokenizer.encode_batch(asked)], [[*ids, eos] for ids in answers]


def ask_checkpoints(records: list[Record], options: argparse.Namespace) -> None:
    """Note the least margin that each answer has in any of the checkpoints."""
    prompts, answers = tokens_of(records)
    for path in options.checkpoint:
        model, _ = load_model(path, "float32", options.device, torch)
        found = margins(model, prompts, answers)
        for record, margin in zip(records, found, strict=True):
            record["least"] = min(record.get("least", math.inf), round(float(margin.min()), 3))
        print(f"{path}: {sum(bool(x.min() > 0) for x in found)} of {len(found)} answers stay")


def measure(records: list[Record], options: argparse.Namespace) -> list[Record]:
    """Those whose answer float32 gives, with their distance and the draws that kept it.

    A candidate that loses its answer in one draw is asked no more.
    """
    prompts, answers = tokens_of(records)
    model, _ = load_model(embedded_model(), "float32", options.device, torch)

    def asked_now(which: list[int]) -> list[Tensor]:
        return margins(model, [prompts[i] for i in which], [answers[i] for i in which])

    left = [
        i
        for i, prompt in enumerate(prompts)
        if len(prompt) < options.prompt_limit and len(answers[i]) <= options.most_tokens
    ]
    left = [i for i, margin in zip(left, asked_now(left), strict=True) if margin.min() > 0]
    print(f"{len(left)} of {len(records)} prompts get their answer in float32", flush=True)
    # Ten bits of mantissa are enough beside noise of some per cent.
    torch.backends.cuda.matmul.allow_tf32 = True
    noise = Noise(model, options.noise)
    drawn: dict[int, list[Tensor]] = {i: [] for i in left}
    for seed in range(options.draws):
        noise.draw(seed)
        stood = 0
        for i, margin in zip(left, asked_now(left), strict=True):
            drawn[i].append(margin)
            stood += bool(margin.min() > 0)
        print(f"draw {seed}: {stood} of {len(left)} answers stay", flush=True)
        left = [i for i in left if records[i]["shipped"] or drawn[i][-1].min() > 0]
    found = []
    for i in left:
        drawn_margins = torch.stack(drawn[i])
        distance = (drawn_margins.mean(dim=0) / drawn_margins.std(dim=0)).min()
        kept = int((drawn_margins.amin(dim=1) > 0).sum())
        facts = {"distance": round(float(distance), 3), "kept": kept, "tokens": len(answers[i])}
        found.append({**records[i], **facts, "prompt_tokens": len(prompts[i])})
    return found


class Choice:
    """Samples chosen so far: no sentence twice, few of a frame and of a way of asking."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.chosen: list[Record] = []
        self._used: Counter[str] = Counter()
        self._options = options

    def marks(self, x: Record) -> tuple[tuple[str, int], ...]:
        """What a record uses up, and how often that may be used."""
        asked = f"{x['kind']} {x['way']} {x['system_prompt']}"
        frames, ways = self._options.frames, self._options.ways
        return ((x["response"], 1), (f"frame {x['frame']}", frames), (asked, ways))

    def fits(self, x: Record) -> bool:
        """Whether it may be added."""
        return all(self._used[mark] < most for mark, most in self.marks(x))

    def add(self, x: Record) -> None:
        self.chosen.append(x)
        self._used.update({mark: 1 for mark, _ in self.marks(x)})

    def fill(self, kind: str, number: int, candidates: Sequence[Record]) -> None:
        """Add candidates of a kind, in their order, until there are so many."""
        missing = number - sum(old["kind"] == kind for old in self.chosen)
        for x in candidates:
            if missing > 0 and x["kind"] == kind and self.fits(x):
                self.add(x)
                missing -= 1
        if missing:
            sys.exit(f"{number} of {kind} are wanted; {number - missing} stand the noise and fit")


def value(x: Record) -> float:
    """How far an answer stands: in standard deviations of the noise, and in the formats."""
    return float(x["distance"] + x.get("least", 0.0))


def is_long(x: Record) -> bool:
    return bool(x["prompt_tokens"] > LONG_TOKENS)


def choose(shipped: list[Record], pool: list[Record], options: argparse.Namespace) -> list[Record]:
    """A set of `--kinds`: samples of the shipped set that stand far enough, then the farthest."""

    def stands(x: Record, distance: float) -> bool:
        return bool(x["distance"] >= distance and x.get("least", math.inf) >= options.least)

    pool = sorted((x for x in pool if stands(x, options.near)), key=lambda x: -value(x))
    choice = Choice(options)
    for sample in shipped:
        if stands(sample, options.keep):
            choice.add(sample)
    long = [x for x in pool if is_long(x)]
    for x in long:
        if sum(is_long(old) for old in choice.chosen) < options.long and choice.fits(x):
            choice.add(x)
    for part in options.kinds.split(","):
        kind, _, number = part.partition("=")
        choice.fill(kind, int(number), [x for x in pool if not is_long(x)])
    return choice.chosen


def numbered(chosen: list[Record]) -> list[Record]:
    """In the order of kinds, with ids of their own."""
    kinds = sorted({x["kind"] for x in chosen}, key=KINDS.index)
    return [
        {**x, "id": f"{kind}.{number}"}
        for kind in kinds
        for number, x in enumerate((x for x in chosen if x["kind"] == kind), 1)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("pool", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--draws", type=int, default=12)
    parser.add_argument("--noise", type=float, default=0.05)
    parser.add_argument("--keep", type=float, default=2.3)
    parser.add_argument("--near", type=float, default=1.8, help="least distance of a candidate")
    parser.add_argument("--kinds", default="summary=28,qa=28,rewrite=14,reason=26")
    parser.add_argument("--most-tokens", type=int, default=25)
    parser.add_argument("--prompt-limit", type=int, default=512)
    parser.add_argument("--frames", type=int, default=6, help="most samples of a frame")
    parser.add_argument("--ways", type=int, default=10, help="most samples of a way of asking")
    parser.add_argument("--long", type=int, default=3, help="samples with a long prompt")
    parser.add_argument("--least", type=float, default=0.2, help="least margin in a checkpoint")
    parser.add_argument(
        "--checkpoint", type=Path, action="append", default=[], help="that answers must stand"
    )
    parser.add_argument("--facts", type=Path, help="choose from what was measured before")
    options = parser.parse_args()
    text = demo_dataset().with_suffix(".jsonl").read_text().splitlines()
    shipped = []
    for line in text:
        x = json.loads(line)
        kind = x["id"].partition(".")[0]
        shipped.append({**x, "kind": kind, "frame": x["response"], "way": "", "shipped": True})
    pool = [json.loads(line) for line in options.pool.read_text().splitlines()]
    if options.facts:
        facts = [json.loads(line) for line in options.facts.read_text().splitlines()]
    else:
        with torch.inference_mode():
            facts = measure([*shipped, *({**x, "shipped": False} for x in pool)], options)
    if options.checkpoint:
        with torch.inference_mode():
            ask_checkpoints(facts, options)
    if options.checkpoint or not options.facts:
        path = options.out.with_suffix(".facts.jsonl")
        path.write_text("".join(json.dumps(x) + "\n" for x in facts))
    if not pool and not options.facts:
        return
    old = [x for x in facts if x["shipped"]]
    if len(old) < len(shipped):
        print(f"{len(shipped) - len(old)} samples of the set do not get their answer in float32")
    chosen = numbered(choose(old, [x for x in facts if not x["shipped"]], options))
    keys = ("id", "system_prompt", "question", "response")
    options.out.write_text("".join(json.dumps({k: x[k] for k in keys}) + "\n" for x in chosen))
    new = sum(not x["shipped"] for x in chosen)
    print(f"{options.out}: {new} of {len(chosen)} samples are new; distances, nearest first:")
    print(*sorted(x["distance"] for x in chosen))
    print(f"tokens {sum(x['tokens'] for x in chosen)}, prompts", end=" ")
    print(*sorted(x["prompt_tokens"] for x in chosen))


if __name__ == "__main__":
    main()
