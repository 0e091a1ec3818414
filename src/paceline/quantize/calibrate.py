"""A block's statistics over the calibration set, and the inputs of the block after it.

The hidden states of all samples wait in the host's memory between blocks, in bfloat16 or float32;
the device holds one block and one sequence. 1,000 samples of Llama-2-70B are 5 GB.

Shape letters (this file)
    T   tokens of a sequence
    D   model width
    X   positions, 2 (cosine, sine), e = half a head
    K   channels
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor

from paceline.errors import DataError
from paceline.native.model import ModelConfig
from paceline.native.rotary import rotary_table
from paceline.quantize.forward import Read, Tap, block_forward, whole
from paceline.quantize.layers import GROUPS
from paceline.quantize.samples import CalibrationSet
from paceline.quantize.statistics import Magnitudes

__all__ = ["BlockStatistics", "Calibration"]

_STREAMS = (*GROUPS, "key", "value")


class BlockStatistics:
    """What one block's activations are like.

    Of the groups in `grams_of`, with x what their products are given and y = read(x):
    `hessians` are the sums of y y^T, `crossed` those of x y^T (none where y is x).
    """

    def __init__(self, *, grams_of: Collection[str] = (), read: Read = whole) -> None:
        self.magnitudes = {name: Magnitudes() for name in _STREAMS}
        self.sums_of_squares: dict[str, Tensor] = {}
        self.hessians: dict[str, Tensor] = {}
        self.crossed: dict[str, Tensor] = {}
        self.num_tokens = 0
        self._grams_of = frozenset(grams_of)
        self._read = read

    def tap(self, name: str, x_TK: Tensor) -> None:
        """Take a sequence's activation."""
        self.magnitudes[name].add(x_TK)
        # Every stream sees every token: one of them counts.
        self.num_tokens += x_TK.shape[0] if name == "qkv" else 0
        square_K = x_TK.square().sum(dim=0)
        before = self.sums_of_squares.get(name)
        # Up to a factor that all channels share: only their ratio is used.
        self.sums_of_squares[name] = square_K if before is None else before + square_K
        if name in self._grams_of:
            read_TK = self._read(x_TK)
            _add(self.hessians, name, read_TK.t() @ read_TK)
            if self._read is not whole:
                _add(self.crossed, name, x_TK.t() @ read_TK)

    def channel_max(self) -> dict[str, Tensor]:
        """The widest magnitude of each channel of each group's input."""
        found = {name: self.magnitudes[name].channel_max_K for name in GROUPS}
        return {name: value for name, value in found.items() if value is not None}


def _add(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
    sums[name] = sums[name] + value if name in sums else value


class Calibration:
    """The calibration set on its way through the model, block by block.

    `states` are the hidden states to go on with; None begins at the embeddings. `read` is the
    rounding of activations that sequences meet on their way.
    """

    def __init__(
        self,
        samples: CalibrationSet,
        config: ModelConfig,
        embed: Tensor,
        *,
        states: list[Tensor] | None = None,
        read: Read = whole,
    ) -> None:
        self.samples = samples
        self.read = read
        self._config = config
        self._device = embed.device
        longest = max(len(prompt) for prompt in samples.prompts)
        if max(int(prompt.max()) for prompt in samples.prompts) >= config.vocab_size:
            raise DataError(
                f"{samples.name} has a token id outside the model's vocabulary of "
                f"{config.vocab_size}.",
                hint="--calibrate with a set made with the model's own tokenizer",
            )
        self._table_X2e = rotary_table(config.rope, longest, embed.device)
        # As wide as the products: on a CPU they are float32 and the sets are small.
        self._kept = torch.float32 if embed.device.type == "cpu" else torch.bfloat16
        self.states = states or [
            embed[torch.from_numpy(prompt).long()].to(self._kept).cpu()
            for prompt in samples.prompts
        ]

    @property
    def is_rounding(self) -> bool:
        """Whether products read rounded activations."""
        return self.read is not whole

    def observe(
        self,
        weights: Mapping[str, Tensor],
        *,
        grams_of: Collection[str] = (),
        moves_on: bool = False,
    ) -> BlockStatistics:
        """Run the block on every sequence and keep its statistics.

        With `moves_on` its outputs become the next block's inputs at once.
        """
        statistics = BlockStatistics(grams_of=grams_of, read=self.read)
        for index, x_TD in enumerate(self._run(weights, statistics.tap)):
            if moves_on:
                self.states[index] = x_TD.to(self._kept).cpu()
        return statistics

    def advance(self, weights: Mapping[str, Tensor]) -> None:
        """Run the block on every sequence; its outputs are the next block's inputs."""
        self.states = [x_TD.to(self._kept).cpu() for x_TD in self._run(weights, _ignore)]

    def _run(self, weights: Mapping[str, Tensor], tap: Tap) -> Iterable[Tensor]:
        for state_TD in self.states:
            x_TD = state_TD.to(self._device).float()
            yield block_forward(
                x_TD, weights, self._config, table_X2e=self._table_X2e, tap=tap, read=self.read
            )


def _ignore(name: str, x_TK: Tensor) -> None:
    del name, x_TK
