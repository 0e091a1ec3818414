"""A checkpoint in, a quantised checkpoint out, in compressed-tensors' layout.

    samples      what calibration may see, and what it refuses
    source       the checkpoint that is read
    calibrate    statistics of activations, block by block (forward, statistics)
    smooth gptq  SmoothQuant's folding; GPTQ's rounding
    encode       values to codes and scales
    options      what to make, and what does not go together
    blocks       one block, from whole precision to what is stored
    convert      the order of it all
    scheme store document    config.json, the folder, the calibration document
    progress     what a killed run leaves for the next

What the formats mean, and how engines read them, is in `paceline.native.formats`.
"""

from paceline.quantize.convert import quantize
from paceline.quantize.options import QuantizeOptions
from paceline.quantize.samples import DEMO, CalibrationSet, demo_calibration, load_calibration

__all__ = [
    "DEMO",
    "CalibrationSet",
    "QuantizeOptions",
    "demo_calibration",
    "load_calibration",
    "quantize",
]
