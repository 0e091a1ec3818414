"""Datasets: what may be opened, what is refused and why, and the rules that are checked."""

from __future__ import annotations

import gzip
import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.errors import DataError
from paceline.mlperf import rules
from paceline.mlperf.columns import FRAME_SCHEMA
from paceline.mlperf.dataset import (
    PUBLISHED_MD5,
    describe_dataset,
    load_dataset,
    verify_dataset,
)
from paceline.mlperf.frames import write_frame


def _frame(**changes: object) -> pd.DataFrame:
    """Eight samples that keep every rule of the published set."""
    origins = [origin for origin in ("cot", "flan", "niv", "t0") for _ in range(2)]
    tok_input = [[1, 1, 518, 25580, *range(100, 100 + i), 29871] for i in range(8)]
    tok_output = [[1, 450, *range(i)] for i in range(1, 9)]
    columns: dict[str, object] = {
        "id": [f"{origin}.{i}" for i, origin in enumerate(origins)],
        "system_prompt": ["You help."] * 8,
        "question": ["Why?"] * 8,
        "output": [f"Answer {'x' * i}" for i in range(8)],
        "input": ["<s>[INST] Why? [/INST]"] * 8,
        "tok_input": tok_input,
        "tok_output": tok_output,
        "origin": origins,
        "tok_input_length": [len(ids) for ids in tok_input],
        "tok_output_length": [len(ids) for ids in tok_output],
    }
    return pd.DataFrame(columns | changes)


def _parquet(tmp_path: Path, frame: pd.DataFrame | None = None) -> Path:
    path = tmp_path / "set.parquet"
    write_frame(_frame() if frame is None else frame, path)
    return path


def _failing(path: Path, **options: Any) -> dict[str, str]:
    findings = verify_dataset(path, **options)
    return {finding.rule: finding.detail for finding in findings if not finding.passed}


def test_parquet_and_trusted_pickle_load_alike(tmp_path: Path) -> None:
    frame, pickled = _frame(), tmp_path / "set.pkl"
    frame.to_pickle(pickled)
    zipped = tmp_path / "set.pkl.gz"
    zipped.write_bytes(gzip.compress(pickled.read_bytes()))
    ours = load_dataset(_parquet(tmp_path))
    for path in (pickled, zipped):
        theirs = load_dataset(path, trust_pickle=True)
        assert theirs.md5 == hashlib.md5(pickled.read_bytes()).hexdigest()
        assert theirs.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        for dataset in (ours, theirs):
            assert dataset.num_samples == len(dataset.prompts) == 8
            assert [ids.tolist() for ids in dataset.prompts] == frame["tok_input"].tolist()
            assert dataset.prompts.flat.dtype == np.int32
            assert dataset.references == frame["output"].tolist()
            assert dataset.origins == frame["origin"].tolist()
            assert dataset.prompt_lens.tolist() == frame["tok_input_length"].tolist()
            assert dataset.reference_lens is not None
            assert dataset.reference_lens.tolist() == frame["tok_output_length"].tolist()


@given(
    st.lists(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=5), min_size=1, max_size=5)
)
def test_prompts_come_back_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, prompts: list[list[int]]
) -> None:
    path = tmp_path_factory.mktemp("data") / "set.parquet"
    pq.write_table(pa.table({"tok_input": prompts, "output": ["x"] * len(prompts)}), path)
    dataset = load_dataset(path)
    assert [ids.tolist() for ids in dataset.prompts] == prompts
    assert (dataset.origins, dataset.reference_lens) == (None, None)
    with pytest.raises(IndexError):
        dataset.prompts[len(prompts)]


class _Trap:
    """Pickled, it runs a command when it is opened."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("zipped", [False, True])
def test_pickle_of_unknown_checksum_is_not_opened(tmp_path: Path, zipped: bool) -> None:
    data = pickle.dumps(_Trap(tmp_path / "sprung"))
    path = tmp_path / ("trap.pkl.gz" if zipped else "trap.pkl")
    path.write_bytes(gzip.compress(data) if zipped else data)
    with pytest.raises(DataError) as caught:
        load_dataset(path)
    text = str(caught.value)
    assert hashlib.md5(data).hexdigest() in text
    assert PUBLISHED_MD5 in text
    assert "--trust-pickle" in text
    assert not (tmp_path / "sprung").exists()


def test_published_checksum_is_the_rule_book_s() -> None:
    assert rules.benchmark("llama2-70b-99.9").dataset_md5 == PUBLISHED_MD5


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.parquet", None, "cannot read the dataset"),
        ("set.parquet", b"PAR1 but no more", "damaged parquet"),
        ("set.parquet", b"text", "neither parquet nor pickle"),
        ("set.pkl.gz", b"\x1f\x8b\x08 broken", "damaged gzip"),
        ("set.pkl", b"\x80\x05 broken", "damaged pickle"),
        ("set.pkl", pickle.dumps([1, 2]), "holds a list, not a frame"),
    ],
)
def test_file_that_is_no_dataset_is_named(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=f"{name}: {message}"):
        load_dataset(path, trust_pickle=True)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("tok_input", None, "'tok_input' is missing; the file has output"),
        ("output", None, "'output' is missing"),
        ("tok_input", ["a", "b"], "'tok_input' is string, not list"),
        ("tok_input", [[1, 2], []], "'tok_input' is empty in row 1"),
        ("tok_input", [[1], None], "'tok_input' has 1 nulls"),
        ("tok_input", [[1], [None]], "'tok_input' has 1 nulls among its ids"),
        ("tok_input", [[1], [2**40]], "'tok_input' is list.*int64.*not"),
        ("output", [["a"], ["b"]], "'output' is list"),
        ("output", ["a", None], "'output' has 1 nulls"),
    ],
)
def test_column_that_cannot_be_used_is_named(
    tmp_path: Path, column: str, values: list[object] | None, message: str
) -> None:
    columns: dict[str, list[Any]] = {"tok_input": [[1], [2]], "output": ["a", "b"]}
    del columns[column]
    if values is not None:
        columns[column] = values
    path = tmp_path / "set.parquet"
    pq.write_table(pa.table(columns), path)
    with pytest.raises(DataError, match=f"set.parquet: column {message}"):
        load_dataset(path)


def test_pickle_with_a_column_of_another_type_is_named(tmp_path: Path) -> None:
    path = tmp_path / "set.pkl"
    _frame(tok_input=["one"] * 8).to_pickle(path)
    with pytest.raises(DataError, match="column 'tok_input' is no list"):
        load_dataset(path, trust_pickle=True)


def test_dataset_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no rows"):
        load_dataset(_parquet(tmp_path, _frame().iloc[:0]))


def test_sound_set_keeps_every_rule(tmp_path: Path) -> None:
    assert _failing(_parquet(tmp_path), expected_samples=8) == {}


def test_pickle_that_is_not_the_published_one_fails_the_checksum(tmp_path: Path) -> None:
    path = tmp_path / "set.pkl"
    _frame().to_pickle(path)
    assert list(_failing(path, trust_pickle=True)) == ["md5"]


def _prompts(change: dict[int, list[int]]) -> dict[str, object]:
    lists = [change.get(i, ids) for i, ids in enumerate(_frame()["tok_input"])]
    return {"tok_input": lists, "tok_input_length": [len(ids) for ids in lists]}


@pytest.mark.parametrize(
    ("changes", "rule", "detail"),
    [
        (_prompts({2: [1, 1, 32000, 29871]}), "ids-in-vocabulary", "1 to 32000 of 0 to 31999"),
        (_prompts({2: [1, 1, -4, 29871]}), "ids-in-vocabulary", "-4 to 29871"),
        (_prompts({5: [1] * 1023 + [29871]}), "prompt-limit", "longest 1024, limit 1024 not"),
        (_prompts({3: [1, 518, 29871]}), "double-bos", "1 rows do not begin with BOS twice: 3"),
        (_prompts({3: [1, 1, 518]}), "response-token", "1 rows do not end with 29871: 3"),
        ({"tok_output_length": [3] * 8}, "tok_output_length", "7 rows state another length"),
        ({"origin": ["cot", "flan", "niv", "t0"] * 2}, "origin-order", "no"),
    ],
)
def test_each_broken_rule_is_found(
    tmp_path: Path, changes: dict[str, object], rule: str, detail: str
) -> None:
    failing = _failing(_parquet(tmp_path, _frame(**changes)))
    assert list(failing) == [rule]
    assert detail in failing[rule]


def test_wrong_number_of_rows_and_missing_columns_are_found(tmp_path: Path) -> None:
    path = tmp_path / "set.parquet"
    table = pa.Table.from_pandas(_frame(), schema=FRAME_SCHEMA).drop_columns(["question", "id"])
    pq.write_table(table, path)
    assert _failing(path, expected_samples=24576) == {
        "columns": "missing: id, question",
        "row-count": "8 rows, 24576 expected",
    }


def test_rules_of_the_llama_prompts_are_not_asked_of_other_sets(tmp_path: Path) -> None:
    path = _parquet(tmp_path, _frame(**_prompts({0: [40000, 3]})))
    benchmark = rules.benchmark("smollm2-135m-99")
    assert _failing(path, benchmark=benchmark) == {}
    assert {"double-bos", "ids-in-vocabulary"} <= set(_failing(path))


def test_description_is_in_plain_numbers(tmp_path: Path) -> None:
    facts = describe_dataset(load_dataset(_parquet(tmp_path)))
    assert facts["num_samples"] == 8
    prompts = facts["prompt_tokens"]
    assert isinstance(prompts, dict)
    assert (prompts["min"], prompts["p99"], prompts["max"]) == (5, 12, 12)
    assert prompts["mean"] == 8.5
    assert facts["prompt_tokens.niv"] == {
        "samples": 2, "min": 9, "p1": 9, "p10": 9, "p50": 9, "p90": 10, "p99": 10, "max": 10,
        "mean": 9.5,
    }  # fmt: skip
    assert {type(value) for value in prompts.values()} == {int, float}
    assert isinstance(facts["reference_chars"], dict)
    assert facts["reference_chars"]["max"] == len("Answer xxxxxxx")
