"""The keys of a GGUF file, against those that the gguf package writes and reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest

from paceline.mlperf.gguf_keys import read_gguf_keys
from paceline.native.gguf_file import _weights_reader

VALUES: dict[str, Any] = {
    "a.uint8": 200,
    "a.int8": -7,
    "a.uint16": 60000,
    "a.int16": -600,
    "a.uint32": 4_000_000_000,
    "a.int32": -70000,
    "a.float32": 0.5,
    "a.float64": 0.1,
    "a.uint64": 2**63,
    "a.int64": -(2**40),
    "a.bool": True,
    "a.string": "\u65e5\u672c text",
    "a.array": [f"\u0120word{i}" for i in range(1500)],
}


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A file with a value of each type, an array of each size, and a tensor after them."""
    import numpy as np

    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in VALUES.items():
        getattr(writer, f"add_{key.partition('.')[2]}")(key, value)
    writer.add_array("b.numbers", list(range(2000)))
    writer.add_array("b.few", [4, 5, 6])
    writer.add_tensor("t.weight", np.arange(12, dtype=np.float32).reshape(3, 4))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_each_type_of_value_is_read(written: Path) -> None:
    wanted = {**VALUES, "b.numbers": list(range(2000)), "b.few": [4, 5, 6]}
    assert read_gguf_keys(written, wanted) == wanted


def test_only_what_is_wanted_and_there_is_given(written: Path) -> None:
    assert read_gguf_keys(written, ["a.int8", "nowhere"]) == {"a.int8": -7}


def test_a_header_cut_anywhere_is_refused(written: Path, tmp_path: Path) -> None:
    content, cut = written.read_bytes(), tmp_path / "cut.gguf"
    end = content.index(b"t.weight") - 8  # the keys end where the list of tensors begins
    for length in [*range(0, 600, 7), *range(600, end, 997), end - 1]:
        cut.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"."):
            read_gguf_keys(cut, VALUES)


def test_an_array_longer_than_the_file_is_refused_before_it_is_made(written: Path) -> None:
    content = bytearray(written.read_bytes())
    at = content.index(b"b.few") + len(b"b.few") + 4 + 4
    content[at : at + 8] = (2**62).to_bytes(8, "little")
    written.write_bytes(content)
    with pytest.raises(ValueError, match="4611686018427387904 items"):
        read_gguf_keys(written, VALUES)


def test_the_reader_of_weights_finds_the_tensors_behind_a_vocabulary(written: Path) -> None:
    quick, whole = _weights_reader()(written), gguf.GGUFReader(written)
    (tensor,), (expected,) = quick.tensors, whole.tensors
    assert (tensor.name, tensor.data_offset) == (expected.name, expected.data_offset)
    assert tensor.data.tolist() == expected.data.tolist()
    assert quick.fields["b.few"].contents() == [4, 5, 6]
    assert quick.fields["a.string"].contents() == VALUES["a.string"]
