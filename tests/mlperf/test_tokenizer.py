"""The tokenizer read from GGUF against what transformers makes of the same file."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest

from paceline.config import demo_dataset, embedded_model
from paceline.errors import CheckpointError
from paceline.mlperf.tokenizer import TextTokenizer, load_tokenizer

AWKWARD = [
    "Don't stop - na\u00efve caf\u00e9 \u65e5\u672c 10,000.5",
    "a  b   c\t\n\n x",
    "<|im_start|>user\nhi<|im_end|>\n",
    "",
    "   ",
    "1234567890 0x7f \U0001f600 <|im_end|><|im_end|>",
]


@pytest.fixture(scope="module")
def embedded() -> TextTokenizer:
    return load_tokenizer(embedded_model())


def test_gguf_ids_and_texts_equal_transformers(embedded: TextTokenizer) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import AutoTokenizer

        model = embedded_model()
        reference = AutoTokenizer.from_pretrained(str(model.parent), gguf_file=model.name)
    records = [json.loads(x) for x in demo_dataset().with_suffix(".jsonl").read_text().splitlines()]
    texts = AWKWARD + [r["question"] for r in records] + [r["response"] for r in records]
    expected = [reference(text, add_special_tokens=False).input_ids for text in texts]
    assert embedded.encode_batch(texts) == expected
    decoded = [reference.decode(ids, skip_special_tokens=True) for ids in expected]
    assert embedded.decode_batch(expected) == decoded


def test_the_vocabulary_is_the_benchmarks(embedded: TextTokenizer) -> None:
    assert embedded.vocabulary_size == 49152


def test_a_folder_without_a_tokenizer_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="tokenizer"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "model.gguf"])
def test_a_damaged_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x00\x01 not a tokenizer" * 10)
    with pytest.raises(CheckpointError):
        load_tokenizer(tmp_path / name)
