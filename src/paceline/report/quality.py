"""Sections on what was answered: lengths, ROUGE by origin and by length, the worst samples."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from paceline.report.blocks import Figure, Pair, Section, Table, number, plain_figure
from paceline.report.rundata import RunData
from paceline.report.samples import ROUGES, Samples

__all__ = ["length_section", "rouge_section", "worst_section"]

_BINS = 32
_LENGTH_GROUPS = 5


def length_section(run: RunData, samples: Samples) -> Section:
    """Histograms of prompts, answers and references, in tokens."""
    section = Section(name="lengths", title="Lengths in tokens")
    known: list[tuple[str, NDArray[np.int64]]] = []
    if samples.prompt_lens is not None:
        known.append(("prompts", samples.prompt_lens))
    if samples.frame is not None:
        known.append(("answers", samples.frame["num_tokens"].to_numpy(dtype=np.int64)))
    if samples.reference_lens is not None:
        known.append(("references", samples.reference_lens))
    known = [(name, lens) for name, lens in known if len(lens)]
    for place, (name, lens) in enumerate(known):
        section.figures.append(_histogram(name, lens, place))
    if "accuracy" not in run.tests:
        section.missing.append(
            "The lengths of answers are of the accuracy test, which this run has not."
        )
    section.missing += samples.missing
    return section


def _histogram(name: str, lens: NDArray[np.int64], place: int) -> Figure:
    top = int(lens.max())
    width = max(1, -(-(top + 1) // _BINS))
    counts = np.bincount(lens // width)
    labels = [f"{i * width}-{(i + 1) * width - 1}" for i in range(len(counts))]
    if width == 1:
        labels = [str(i) for i in range(len(counts))]
    spread = np.percentile(lens, (10, 50, 90))
    title = f"Length of {name}"
    return plain_figure(
        f"lengths-{name}",
        title,
        summary=f"{len(lens):,} {name}: mean {lens.mean():,.1f}, 10/50/90 % "
        f"{spread[0]:,.0f}/{spread[1]:,.0f}/{spread[2]:,.0f}, longest {top:,}.",
        axes=("tokens", "samples"),
        data=[
            {"type": "bar", "name": name, "x": labels, "y": counts.tolist(), "meta": f"c{place}"}
        ],
        table=Table(
            caption=title,
            head=("tokens", "samples"),
            rows=tuple(zip(labels, (f"{n:,}" for n in counts.tolist()), strict=True)),
            numeric=(1,),
        ),
    )


def rouge_section(run: RunData, samples: Samples) -> Section:
    """ROUGE by origin, by length of the answer and of the prompt."""
    section = Section(name="rouge", title="ROUGE by origin and by length")
    frame = samples.frame
    if frame is None or not len(frame):
        section.missing.append(
            "The run has no scores of single samples."
            if "accuracy" in run.tests
            else "The run has no accuracy test."
        )
        return section
    scores = frame[list(ROUGES)].to_numpy(dtype=np.float64) * 100
    everything = [("all", np.ones(len(frame), dtype=bool))]
    if samples.origins is not None:
        origins = np.array(samples.origins)
        groups = [(str(name), origins == name) for name in sorted(set(samples.origins))]
        section.figures.append(_grouped("origin", "ROUGE by origin", everything + groups, scores))
    else:
        section.missing.append("ROUGE by origin: the origins of the samples are not known.")
    lens = frame["num_tokens"].to_numpy(dtype=np.int64)
    groups = _by_length(lens)
    section.figures.append(_grouped("length", "ROUGE by length of the answer", groups, scores))
    if samples.prompt_lens is not None:
        groups = _by_length(samples.prompt_lens)
        figure = _grouped("prompt-length", "ROUGE by length of the prompt", groups, scores)
        section.figures.append(figure)
    return section


def _by_length(lens: NDArray[np.int64]) -> list[tuple[str, NDArray[np.bool_]]]:
    """Fifths of the samples by length, fewer where many are of one length."""
    edges = np.unique(np.percentile(lens, np.linspace(0, 100, _LENGTH_GROUPS + 1)).astype(int))
    if len(edges) == 1:
        return [(f"{edges[0]}", np.ones(len(lens), dtype=bool))]
    groups = []
    for place, (low, high) in enumerate(itertools.pairwise(edges)):
        is_last = place == len(edges) - 2
        mask = (lens >= low) & ((lens <= high) if is_last else (lens < high))
        if mask.any():
            groups.append((f"{low}-{high if is_last else high - 1}", mask))
    return groups


def _grouped(
    name: str,
    title: str,
    groups: Sequence[tuple[str, NDArray[np.bool_]]],
    scores: NDArray[np.float64],
) -> Figure:
    labels = [label for label, _ in groups]
    means = [scores[mask].mean(axis=0) for _, mask in groups]
    data = [
        {
            "type": "bar",
            "name": metric,
            "x": labels,
            "y": [round(float(mean[place]), 4) for mean in means],
            "meta": f"c{place}",
        }
        for place, metric in enumerate(ROUGES)
    ]
    rows = tuple(
        (label, f"{int(mask.sum()):,}", *(number(float(value), 4) for value in mean))
        for (label, mask), mean in zip(groups, means, strict=True)
    )
    firsts = ", ".join(f"{row[0]} {row[2]}" for row in rows)
    return plain_figure(
        f"rouge-{name}",
        title,
        summary=f"ROUGE-1 in percent: {firsts}.",
        axes=("origin" if name == "origin" else "tokens", "mean F in percent"),
        data=data,
        table=Table(
            caption=title,
            head=("group", "samples", *ROUGES),
            rows=rows,
            numeric=(1, 2, 3, 4),
        ),
    )


def worst_section(run: RunData, samples: Samples) -> Section:
    """The samples of lowest score, answer beside reference."""
    section = Section(name="worst", title="The worst samples beside their references")
    if "accuracy" not in run.tests:
        section.missing.append("The run has no accuracy test.")
    elif not samples.worst:
        section.missing += samples.missing or ["No sample has a score."]
    else:
        section.paragraphs.append(
            f"The {len(samples.worst)} samples whose mean of the three scores is lowest."
        )
    for sample in samples.worst:
        scores = " / ".join(f"{score * 100:.2f}" for score in sample.scores)
        origin = f" of {sample.origin}" if sample.origin else ""
        section.pairs.append(
            Pair(
                head=f"Sample {sample.sample_index}{origin}: ROUGE-1/2/L {scores}, "
                f"{sample.num_tokens} tokens",
                texts=(
                    ("prompt", sample.prompt),
                    ("answer", sample.answer or "(empty)"),
                    ("reference", sample.reference or "(empty)"),
                ),
            )
        )
    return section
