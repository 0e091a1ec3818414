"""Two accuracy runs of the same samples, beside each other: what another precision changes.

answers    the runs' answers: scores, identical ones, where they part
lens       the two models' logits on the same tokens, layer by layer (needs PyTorch)
plot       both as one picture
"""

from paceline.compare.answers import Side, compare_answers, open_side
from paceline.compare.plot import picture

__all__ = ["Side", "compare_answers", "open_side", "picture"]
