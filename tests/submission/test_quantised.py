"""A submission of a quantised checkpoint says what `paceline quantize` did to it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from paceline.errors import InputError
from paceline.submission import measurements
from paceline.submission.matching import Test as Run


def run_of(folder: Path, *, is_verified: bool = True, **engine: Any) -> Run:
    """A finished run of a checkpoint in `folder`, as far as the documents read it."""
    folder.mkdir()
    used = {"set": "calibration.parquet", "is_used": True, "is_verified": is_verified}
    (folder / "calibration.json").write_text(json.dumps({"calibration": used}))
    (folder / "calibration.md").write_text("# Calibration\n\nFP8, 1,000 samples.\n")
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    facts = {"device": "cuda", "dtype": "bfloat16", "quantization": "auto", **engine}
    return Run(
        name="performance",
        run_dir=folder,
        manifest={
            "config": {
                "engine": "native",
                "model_path": str(folder),
                "engine_config": {"dtype": "auto", "quantization": "auto"},
            },
            "tests": {"performance": {"engine": facts}},
            "model": {"path": str(folder), "files": files},
        },
        verdict={},
    )


@pytest.mark.parametrize(
    ("stored", "kind"),
    [("fp8", "fp8"), ("fp8-token", "fp8"), ("w4a8", "int4"), ("w4a16", "int4"), ("nvfp4", "fp4")],
)
def test_the_checkpoints_own_document_is_the_submissions(
    tmp_path: Path, stored: str, kind: str
) -> None:
    run = run_of(tmp_path / "model", checkpoint_format=stored, quantization=stored)
    assert measurements.weight_type(run) == kind
    text = measurements.calibration_text(run, None, division="closed")
    assert text == (tmp_path / "model" / "calibration.md").read_text()


def test_a_checkpoint_that_ran_dequantised_is_of_whole_precision(tmp_path: Path) -> None:
    run = run_of(tmp_path / "model", checkpoint_format="fp8", quantization="none")
    assert measurements.weight_type(run) == "bf16"
    assert "not quantized" in measurements.calibration_text(run, None, division="closed")


def test_a_document_changed_since_the_run_is_refused(tmp_path: Path) -> None:
    run = run_of(tmp_path / "model", checkpoint_format="w4a8")
    (tmp_path / "model" / "calibration.md").write_text("Nothing was done.\n")
    with pytest.raises(InputError, match="is not what the run read"):
        measurements.calibration_text(run, None, division="closed")


def test_a_closed_submission_needs_a_calibration_set_that_is_known_to_be_the_rules(
    tmp_path: Path,
) -> None:
    run = run_of(tmp_path / "model", is_verified=False, checkpoint_format="fp8")
    with pytest.raises(InputError, match="not known to be the rules"):
        measurements.calibration_text(run, None, division="closed")
    assert "1,000 samples" in measurements.calibration_text(run, None, division="open")
