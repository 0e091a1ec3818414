"""The paged KV cache: which pages are whose (pure Python), and the tensors behind them.

A page holds `page_len` consecutive tokens of one sequence, for all layers. Page 0 belongs to
nobody: padded rows write their keys and values there.

Shape letters (this file)
    L   layers held here
    P   pages, the trash page included
    H   KV heads held here
    N   tokens of a page
    d   head size
    S   sequence slots, plus one for padded rows
    I   pages a sequence may own
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from paceline.native.errors import NativeError

__all__ = ["TRASH_PAGE", "CacheConfig", "KVCache", "PageAllocator"]

TRASH_PAGE = 0


class PageAllocator:
    """Hands out pages 1..num_pages and takes them back; a page has one owner or none."""

    def __init__(self, num_pages: int, page_len: int) -> None:
        self.num_pages = num_pages
        self.page_len = page_len
        # A stack: the pages just freed are the ones still in the device's second-level cache.
        self._free = list(range(num_pages, 0, -1))
        self._is_free = [False] + [True] * num_pages

    @property
    def num_free(self) -> int:
        return len(self._free)

    def num_pages_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.page_len)

    def allocate(self, count: int) -> list[int]:
        """Take `count` pages; the caller has looked at `num_free`."""
        assert count <= len(self._free), "allocate asked for more pages than are free"
        pages = [self._free.pop() for _ in range(count)]
        for page in pages:
            self._is_free[page] = False
        return pages

    def free(self, pages: Iterable[int]) -> None:
        for page in pages:
            assert page != TRASH_PAGE, "the trash page was freed"
            assert not self._is_free[page], "a page was freed twice"
            self._is_free[page] = True
            self._free.append(page)


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheConfig:
    """Sizes of a rank's cache. `max_context_len` is in tokens."""

    num_layers: int
    num_kv_heads: int
    head_size: int
    page_len: int
    max_context_len: int
    max_live_sequences: int
    dtype: torch.dtype

    @property
    def page_bytes(self) -> int:
        """Bytes of one page: keys and values of all layers."""
        elements = 2 * self.num_layers * self.num_kv_heads * self.page_len * self.head_size
        return elements * self.dtype.itemsize


class KVCache:
    """Keys and values by page, and each slot's page table, on one device.

        keys_LPHNd, values_LPHNd    dtype of the config
        page_table_SI               int32; the last row stays at the trash page

    Raises
        NativeError  the memory for `num_pages` pages is not there.
    """

    def __init__(self, config: CacheConfig, num_pages: int, device: torch.device) -> None:
        self.config = config
        self.num_pages = num_pages
        shape = (
            config.num_layers,
            num_pages + 1,
            config.num_kv_heads,
            config.page_len,
            config.head_size,
        )
        try:
            self.keys_LPHNd = torch.zeros(shape, dtype=config.dtype, device=device)
            self.values_LPHNd = torch.zeros(shape, dtype=config.dtype, device=device)
        except torch.OutOfMemoryError as error:
            raise NativeError(
                f"no memory for {num_pages} KV pages of {config.page_bytes} bytes on {device}",
                hint="lower kv_memory_fraction or kv_pages",
            ) from error
        pages_per_sequence = -(-config.max_context_len // config.page_len)
        self.page_table_SI = torch.zeros(
            (config.max_live_sequences + 1, pages_per_sequence), dtype=torch.int32, device=device
        )

    def set_pages(self, flat_index_U: Tensor, page_U: Tensor) -> None:
        """Write `page_U` at `flat_index_U` of the flattened page table (both on the device)."""
        self.page_table_SI.view(-1).index_copy_(0, flat_index_U, page_U)

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values of one layer, each (P, H, N, d)."""
        return self.keys_LPHNd[index], self.values_LPHNd[index]
