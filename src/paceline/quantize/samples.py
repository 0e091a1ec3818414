"""The samples that calibration may see: the rules' calibration set, or the demo's.

MLPerf's rule: quantisation may use the benchmark's calibration set or a part of it, and nothing
else of the data. OpenOrca's calibration set is drawn from the evaluation set (1,000 rows,
`DataFrame.sample(n=1000, random_state=12345)`), so a set can be known as the rules' own only
beside the evaluation set: `evaluation` gives it. The demo's calibration set shares no prompt with
its evaluation samples; a prompt of those is refused wherever it turns up.

Source
    mlcommons/inference b66003e1, language/llama2-70b/processorca.py, OpenOrcaDatasetGenerator;
    mlcommons/inference_policies ac93e89, inference_rules.adoc, section "Quantization".
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from paceline.config import demo_dataset
from paceline.errors import DataError
from paceline.mlperf.dataset import PUBLISHED_MD5, Dataset, load_dataset

__all__ = ["DEMO", "CalibrationSet", "demo_calibration", "load_calibration"]

DEMO = "demo"
# Of processorca.py: the size of the calibration set and the seed it is drawn with.
_NUM_CALIBRATION, _SEED = 1000, 12345
_RULE = "the rules allow the 1,000 samples of the calibration set, or a part of them"


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationSet:
    """Prompts to calibrate on, and what is known of them.

    `provenance` says why the set may be used, or that it could not be shown.
    """

    name: str
    sha256: str
    prompts: tuple[npt.NDArray[np.int32], ...]
    rows: tuple[int, ...]
    provenance: str
    is_verified: bool

    def prompt_hashes(self) -> list[str]:
        """SHA-256 of each prompt's ids, little-endian int32."""
        return [_hash(prompt) for prompt in self.prompts]


def demo_calibration() -> Path:
    """The calibration set that ships with paceline."""
    return demo_dataset().with_name("demo_calibration.parquet")


def load_calibration(
    path: Path, *, evaluation: Path | None, limit: int | None, trust_pickle: bool
) -> CalibrationSet:
    """Load a calibration set and refuse one that holds evaluation data.

    `limit` takes the first so many samples.

    Raises
        DataError  a prompt belongs to the demo's evaluation set; the set is larger than the
                   rules' or is the evaluation set itself; or `evaluation` is given and the set
                   is no part of what the rules draw from it.
    """
    is_demo = path.resolve() == demo_calibration().resolve()
    loaded = load_dataset(path, trust_pickle=trust_pickle)
    _refuse_demo_prompts(path, loaded)
    if loaded.num_samples > _NUM_CALIBRATION or loaded.md5 == PUBLISHED_MD5:
        raise DataError(
            f"{path} holds {loaded.num_samples} samples, as an evaluation set does: {_RULE}.",
            hint="--calibrate with the calibration set; `paceline data build` writes it",
        )
    if evaluation is not None:
        _check_drawn(path, loaded, load_dataset(evaluation, trust_pickle=trust_pickle))
        provenance = (
            f"every prompt is one of the {_NUM_CALIBRATION} that the rules draw from the "
            f"evaluation set given (random_state {_SEED})"
        )
    elif is_demo:
        provenance = "paceline's own calibration set; no prompt is one of the demo's samples"
    else:
        provenance = (
            "NOT VERIFIED as the rules' calibration set: the evaluation set to draw it from was "
            "not given (--evaluation)"
        )
    count = loaded.num_samples if limit is None else min(limit, loaded.num_samples)
    return CalibrationSet(
        name=path.name,
        sha256=loaded.sha256,
        prompts=tuple(loaded.prompts[index] for index in range(count)),
        rows=tuple(range(count)),
        provenance=provenance,
        is_verified=is_demo or evaluation is not None,
    )


def _refuse_demo_prompts(path: Path, loaded: Dataset) -> None:
    known = set(_hashes(load_dataset(demo_dataset()).prompts))
    shared = [row for row, own in enumerate(_hashes(loaded.prompts)) if own in known]
    if shared:
        raise DataError(
            f"{path}: row {shared[0]} is an evaluation sample of the demo ({len(shared)} are); "
            "calibrating on evaluation data is against the rules.",
            hint=f"--calibrate {DEMO} takes the demo's calibration set",
        )


def _check_drawn(path: Path, loaded: Dataset, evaluation: Dataset) -> None:
    if evaluation.num_samples < _NUM_CALIBRATION:
        raise DataError(
            f"{evaluation.path} holds {evaluation.num_samples} samples, too few to draw "
            f"{_NUM_CALIBRATION} from.",
            hint="--evaluation with the benchmark's dataset of 24,576 samples",
        )
    rows = pd.Series(range(evaluation.num_samples)).sample(n=_NUM_CALIBRATION, random_state=_SEED)
    drawn = {_hash(evaluation.prompts[int(row)]) for row in rows}
    others = [row for row, own in enumerate(_hashes(loaded.prompts)) if own not in drawn]
    if others:
        raise DataError(
            f"{path}: {len(others)} samples (first: row {others[0]}) are not among those that the "
            f"rules draw for calibration from {evaluation.path.name}: {_RULE}.",
            hint="--calibrate with the calibration set that `paceline data build` wrote",
        )


def _hashes(prompts: Iterable[npt.NDArray[np.int32]]) -> list[str]:
    return [_hash(prompt) for prompt in prompts]


def _hash(prompt: npt.NDArray[np.int32]) -> str:
    return hashlib.sha256(np.ascontiguousarray(prompt, dtype="<i4").tobytes()).hexdigest()
