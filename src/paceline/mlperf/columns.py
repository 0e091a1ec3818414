"""The ten columns of a frame of samples: those of the reference's pickle.

So a tool for the one reads the other; token ids are int32 arrays rather than lists of Python
integers, which take nine times the memory.
"""

from __future__ import annotations

import pyarrow as pa

__all__ = ["FRAME_SCHEMA"]

FRAME_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("system_prompt", pa.string()),
        ("question", pa.string()),
        ("output", pa.string()),
        ("input", pa.string()),
        ("tok_input", pa.list_(pa.int32())),
        ("tok_output", pa.list_(pa.int32())),
        ("origin", pa.string()),
        ("tok_input_length", pa.int64()),
        ("tok_output_length", pa.int64()),
    ]
)
