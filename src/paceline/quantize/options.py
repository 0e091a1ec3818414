"""What to make of a checkpoint, and what does not go together."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from paceline.errors import InputError
from paceline.native.formats import FORMATS, PACKED_KINDS
from paceline.native.model import ModelConfig
from paceline.quantize.layers import linear_shapes

__all__ = ["PERCENTILES_OF", "QuantizeOptions", "group_len_of"]

PERCENTILES_OF = ("tokens", "values")
_GROUP_LENS = (128, 64, 32)
_FIXED_GROUP_LENS = {"mxfp4": 32, "nvfp4": 16}


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizeOptions:
    """What to make. `group_len` 0 is the widest of 128, 64 and 32 that divides all widths.

    `percentile` is for fixed scales of activations and of the cache, of the widest |x| of each
    token or of all |x| ("tokens" or "values"); 100 is the widest value. `smooth_alpha` None leaves
    SmoothQuant out.
    """

    format: str
    group_len: int = 0
    is_kv_fp8: bool = False
    percentile: float = 99.9
    percentile_of: str = "tokens"
    smooth_alpha: float | None = None
    uses_gptq: bool = False
    device: str = "cpu"

    def check(self, *, is_calibrated: bool) -> None:
        """Refuse what does not go together.

        Raises
            InputError  a value is not of its kind, or something needs a calibration set.
        """
        if self.format not in FORMATS:
            raise InputError(
                f"There is no format '{self.format}'.", hint=f"one of {', '.join(FORMATS)}"
            )
        if not 50.0 <= self.percentile <= 100.0:
            raise InputError(f"--percentile is {self.percentile}.", hint="from 50 to 100")
        if self.percentile_of not in PERCENTILES_OF:
            raise InputError(
                f"--percentile-of is '{self.percentile_of}'.",
                hint=f"one of {', '.join(PERCENTILES_OF)}",
            )
        if self.smooth_alpha is not None and not 0.0 < self.smooth_alpha < 1.0:
            raise InputError(f"--smoothquant is {self.smooth_alpha}.", hint="between 0 and 1")
        if self.uses_gptq and self.format not in PACKED_KINDS:
            raise InputError(
                f"--gptq rounds to four bits; {self.format} has eight.", hint="leave --gptq out"
            )
        needs = {
            "--format fp8 (its activations have fixed scales)": self.format == "fp8",
            "--kv fp8": self.is_kv_fp8,
            "--smoothquant": self.smooth_alpha is not None,
            "--gptq": self.uses_gptq,
        }
        asked = [name for name, is_needed in needs.items() if is_needed]
        if asked and not is_calibrated:
            raise InputError(
                f"{asked[0]} needs a calibration set.",
                hint="--calibrate DATASET, or --calibrate demo for the embedded model",
            )
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise InputError("--device is cuda, and torch finds none.", hint="--device cpu")

    @property
    def makes_up_for_reads(self) -> bool:
        """Whether the rounding of weights makes up for that of activations: GPTQ's can."""
        return self.uses_gptq and self.format == "w4a8"

    @property
    def uses_samples(self) -> bool:
        """Whether anything of the format is found from activations."""
        return self.format != "fp8-token" or self.is_kv_fp8 or self.smooth_alpha is not None


def group_len_of(name: str, asked: int, config: ModelConfig) -> int:
    """Values that share a scale; 0 for a format without groups.

    Raises
        InputError  no group length divides every width of the model.
    """
    if name not in PACKED_KINDS:
        if asked:
            raise InputError(f"{name} has no groups.", hint="leave --group-size out")
        return 0
    widths = sorted({columns for _, columns in linear_shapes(config).values()})
    fixed = _FIXED_GROUP_LENS.get(name)
    if fixed is not None and asked not in (0, fixed):
        raise InputError(f"{name} has groups of {fixed}.", hint="leave --group-size out")
    lens = (fixed or asked,) if (fixed or asked) else _GROUP_LENS
    for length in lens:
        if all(width % length == 0 for width in widths):
            return length
    raise InputError(
        f"groups of {' or '.join(map(str, lens))} do not divide the widths "
        f"{', '.join(map(str, widths))}.",
        hint="another --group-size, or --format fp8",
    )
