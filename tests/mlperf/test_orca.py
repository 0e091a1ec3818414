"""The Open Orca pipeline against its plain definition: one row after another, all in memory."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from paceline.errors import CheckpointError, DataError
from paceline.mlperf.columns import FRAME_SCHEMA
from paceline.mlperf.frames import build_chat_frame, write_frame
from paceline.mlperf.orca import OrcaSpec, bench_data_build, build_frame, build_openorca, scan_rows
from paceline.mlperf.orca_bench import train_llama_tokenizer, write_raw_rows
from paceline.mlperf.tokens import TokenCounter, load_llama_tokenizer

_SPEC = OrcaSpec(
    num_samples=8, num_calibration=3, len_limit_tokens=60, response_token=7, batch_rows=16
)
_DETAILED = (
    "You are an AI assistant. Provide a detailed answer so user don%st need to search outside to "
    "understand the answer."
)
_BAD = [
    "",
    "Explain how you used the definition to come up with the answer.",
    _DETAILED % "\u2019",
    _DETAILED % "'",
]
_WORDS = "the a cat sat on mats running dogs ran home assistant answer task user"


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_llama_tokenizer(_WORDS.split() * 20).save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def tokenizer(tokenizer_dir: Path) -> Tokenizer:
    return load_llama_tokenizer(tokenizer_dir)


def _plain(raw: pd.DataFrame, tokenizer: Tokenizer, spec: OrcaSpec) -> pd.DataFrame:
    """processorca.py's steps in its order, stated plainly."""
    rows = []
    for row in raw.to_dict("records"):
        system, question, output = row["system_prompt"], row["question"], row["response"]
        text = f"<<SYS>>\n{system}\n<</SYS>>\n\n{question}" if system else question
        prompt = f"<s>[INST] {text} [/INST]"
        tok_input = [*tokenizer.encode(prompt).ids, spec.response_token]
        tok_output = tokenizer.encode(output).ids
        origin = row["id"].split(".")[0]
        english = all(c.isascii() or c in "\u2019\u2013\u201c\u201d\u2014" for c in prompt + output)
        fits = max(len(tok_input), len(tok_output)) < spec.len_limit_tokens
        bad = origin in ("niv", "t0") and system in _BAD
        if english and fits and len(tok_output) >= 3 and not bad:
            rows.append(
                {
                    "id": row["id"],
                    "system_prompt": system,
                    "question": question,
                    "output": output,
                    "input": prompt,
                    "tok_input": tok_input,
                    "tok_output": tok_output,
                    "origin": origin,
                    "tok_input_length": len(tok_input),
                    "tok_output_length": len(tok_output),
                }
            )
    kept = pd.DataFrame(rows)
    share = spec.num_samples // kept["origin"].nunique()
    samples = [
        group.reset_index(drop=True).sample(n=share, random_state=1337)
        for _, group in kept.groupby("origin")
    ]
    return pd.concat(samples).reset_index(drop=True)


def _same(ours: pd.DataFrame, plain: pd.DataFrame) -> None:
    assert list(ours.columns) == list(plain.columns)
    for name in plain.columns:
        assert [_value(v) for v in ours[name]] == [_value(v) for v in plain[name]], name


def _value(value: object) -> object:
    return value.tolist() if isinstance(value, np.ndarray) else value


_word = st.sampled_from(
    [
        "the",
        "cat",
        "running",
        "x" * 30,
        "don\u2019t",
        "\u2014",
        "<s>",
        "</s>",
        "\n",
        "",
        "1,2",
        "dogs",
    ]
)
_text = st.lists(_word, max_size=25).map(" ".join)
_row = st.fixed_dictionaries(
    {
        "id": st.tuples(st.sampled_from(["cot", "flan", "niv", "t0"]), st.integers(0, 99)).map(
            lambda parts: f"{parts[0]}.{parts[1]}"
        ),
        "system_prompt": st.sampled_from([*_BAD, "You are a cat.", "dogs ran home"]),
        "question": st.one_of(_text, st.just("caf\u00e9"), st.just("\u2581 odd")),
        "response": st.one_of(_text, st.sampled_from(["", "a", "\u4e2d"])),
    }
)


def _good_rows() -> list[dict[str, str]]:
    """Enough rows that pass for two samples an origin."""
    return [
        {
            "id": f"{origin}.{i}",
            "system_prompt": "You are a dog.",
            "question": f"cat {i}",
            "response": "the cat sat",
        }
        for i in range(2)
        for origin in ("t0", "cot", "niv", "flan")
    ]


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(_row, max_size=40))
def test_frame_is_the_plain_definition_row_for_row(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer, rows: list[dict[str, str]]
) -> None:
    raw = pd.DataFrame([*rows, *_good_rows()])
    parquet = tmp_path_factory.mktemp("raw") / "raw.parquet"
    raw.to_parquet(parquet, row_group_size=10)
    _same(build_frame(parquet, tokenizer, spec=_SPEC), _plain(raw, tokenizer, _SPEC))


def test_build_of_realistic_rows_is_the_plain_definition(
    tmp_path: Path, tokenizer_dir: Path, tokenizer: Tokenizer
) -> None:
    spec = OrcaSpec(num_samples=24, num_calibration=9, response_token=7, batch_rows=100)
    write_raw_rows(tmp_path / "raw.parquet", 400)
    raw = pd.read_parquet(tmp_path / "raw.parquet")
    calls: list[tuple[int, int]] = []
    report = build_openorca(
        tmp_path / "raw.parquet",
        tokenizer_dir,
        tmp_path / "new" / "out",
        spec=spec,
        progress=lambda *call: calls.append(call),
    )
    plain = _plain(raw, tokenizer, spec)
    _same(pd.read_parquet(report.path), plain)
    calibration = plain.sample(n=9, random_state=12345).reset_index(drop=True)
    _same(pd.read_parquet(report.calibration_path), calibration)
    assert report.path.name == "openorca_24.parquet"
    assert report.calibration_path.name == "openorca_calibration_9.parquet"
    assert sum(report.dropped.values()) + sum(report.kept.values()) == report.num_rows == 400
    assert report.dropped["not_english"] > 0
    assert report.dropped["bad_prompt"] > 0
    assert report.dropped["output_too_long"] > 0
    assert calls == sorted(calls)
    assert calls[-1] == (800, 800)
    assert sorted(path.name for path in report.path.parent.iterdir()) == [
        "openorca_24.parquet",
        "openorca_calibration_9.parquet",
    ]
    assert report.as_json()["path"] == str(report.path)


def test_rows_that_are_no_text_are_counted(tmp_path: Path, tokenizer: Tokenizer) -> None:
    raw = pd.DataFrame(_good_rows())
    raw.loc[1, "response"] = None
    raw.loc[2, "question"] = None
    raw.loc[3, "system_prompt"] = None
    raw.to_parquet(tmp_path / "raw.parquet")
    scan = scan_rows(tmp_path / "raw.parquet", tokenizer, spec=_SPEC)
    assert scan.dropped["not_text"] == 2
    assert scan.rows_of_origin["flan"].tolist() == [3, 7]


def test_too_few_rows_of_an_origin_name_it_and_the_counts(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    pd.DataFrame(_good_rows()[:-1]).to_parquet(tmp_path / "raw.parquet")
    with pytest.raises(DataError, match=r"'flan' has 1 rows .* 2 are needed for 8 samples"):
        build_frame(tmp_path / "raw.parquet", tokenizer, spec=_SPEC)


def test_samples_that_do_not_divide_are_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    pd.DataFrame(_good_rows()).to_parquet(tmp_path / "raw.parquet")
    with pytest.raises(DataError, match="9 samples cannot be drawn equally from 4 origins"):
        build_frame(tmp_path / "raw.parquet", tokenizer, spec=OrcaSpec(num_samples=9))


def test_more_calibration_samples_than_samples_are_refused(
    tmp_path: Path, tokenizer_dir: Path
) -> None:
    pd.DataFrame(_good_rows()).to_parquet(tmp_path / "raw.parquet")
    with pytest.raises(DataError, match="1000 calibration samples cannot be drawn from 8"):
        build_openorca(
            tmp_path / "raw.parquet", tokenizer_dir, tmp_path, spec=OrcaSpec(num_samples=8)
        )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read the raw dataset"),
        (b"PAR1 no parquet", "cannot read the raw dataset"),
        (pd.DataFrame({"id": ["cot.1"]}), "column 'system_prompt' is missing"),
        (
            pd.DataFrame({"id": [1], "system_prompt": [""], "question": [""], "response": [""]}),
            "column 'id' is int64, not string",
        ),
    ],
    ids=["absent", "damaged", "column-missing", "column-of-another-type"],
)
def test_raw_file_that_cannot_be_used_is_named(
    tmp_path: Path, tokenizer: Tokenizer, content: pd.DataFrame | bytes | None, message: str
) -> None:
    path = tmp_path / "raw.parquet"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        content.to_parquet(path)
    with pytest.raises(DataError, match=f"raw.parquet: {message}"):
        scan_rows(path, tokenizer)


def test_damage_inside_the_raw_file_is_an_error_and_leaves_nothing(
    tmp_path: Path, tokenizer_dir: Path
) -> None:
    path = tmp_path / "raw.parquet"
    write_raw_rows(path, 200)
    damaged = bytearray(path.read_bytes())
    damaged[100:2000] = b"\xff" * 1900
    path.write_bytes(damaged)
    with pytest.raises(DataError, match="cannot read the raw dataset"):
        build_openorca(path, tokenizer_dir, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_output_that_is_no_directory_is_refused_before_the_work(
    tmp_path: Path, tokenizer_dir: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file: cannot be written \(File exists"):
        build_openorca(tmp_path / "absent.parquet", tokenizer_dir, tmp_path / "file")


def _limit_file_size() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


def test_full_disk_is_one_clear_error_and_leaves_nothing(
    tmp_path: Path, tokenizer_dir: Path
) -> None:
    # A limit on the size of files ends a write as a full disk does.
    write_raw_rows(tmp_path / "raw.parquet", 400)
    code = (
        "import sys; from pathlib import Path; from paceline.mlperf.orca import *; "
        "from paceline.errors import EnvironmentProblem\n"
        "try: build_openorca(*map(Path, sys.argv[1:]), spec=OrcaSpec(num_samples=24,"
        " num_calibration=2))\n"
        "except EnvironmentProblem as error: print(error)"
    )
    arguments = [tmp_path / "raw.parquet", tokenizer_dir, tmp_path / "out"]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=_limit_file_size,
    )
    assert "openorca_24.parquet: cannot be written" in done.stdout
    assert "free some space" in done.stdout
    assert list((tmp_path / "out").iterdir()) == []


# Tokens


_part = st.one_of(
    st.sampled_from(
        ["<s>", "</s>", " ", "  ", "\n", "\t", "the", " cat", " sat,", "\u2019", "\u2581"]
    ),
    st.text(alphabet="abs <>/\n\xe9\U0001f600", max_size=4),
)
_tokenised = st.lists(_part, max_size=60).map("".join)


@given(texts=st.lists(_tokenised, max_size=5))
def test_counts_are_those_of_the_tokenizer(tokenizer: Tokenizer, texts: list[str]) -> None:
    counter = TokenCounter(tokenizer)
    assert counter.is_fast
    expected = [len(tokenizer.encode(text)) for text in texts]
    assert counter.lens(texts) == expected
    assert counter.lens(texts) == expected  # now from what it remembers


@given(texts=st.lists(_tokenised, max_size=5), low=st.integers(0, 6), width=st.integers(1, 300))
def test_bounds_never_put_a_text_on_the_wrong_side(
    tokenizer: Tokenizer, texts: list[str], low: int, width: int
) -> None:
    counter = TokenCounter(tokenizer)
    texts = [text * repeat for text in texts for repeat in (1, 9)]
    counter.lens(texts[::3])
    exact = [len(tokenizer.encode(text)) for text in texts]
    given = counter.lens_for_limits(texts, low=low, limit=low + width)
    assert [(n < low, n >= low + width) for n in given] == [
        (n < low, n >= low + width) for n in exact
    ]


def test_tokenizer_whose_entries_cross_words_is_not_cut(tokenizer_dir: Path) -> None:
    spec = json.loads((tokenizer_dir / "tokenizer.json").read_text())
    spec["model"]["vocab"]["the\u2581cat"] = len(spec["model"]["vocab"])
    crossing = Tokenizer.from_str(json.dumps(spec))
    counter = TokenCounter(crossing)
    assert not counter.is_fast
    texts = ["the cat", "", "the the"]
    exact = [len(crossing.encode(each)) for each in texts]
    assert counter.lens_for_limits(texts, low=2, limit=9) == counter.lens(texts) == exact


def test_bos_is_put_in_front_unless_the_directory_says_no(
    tmp_path: Path, tokenizer_dir: Path
) -> None:
    text = (tokenizer_dir / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(text)
    assert load_llama_tokenizer(tmp_path).encode("the").ids[0] == 1
    (tmp_path / "tokenizer_config.json").write_text(
        '{"add_bos_token": false, "add_eos_token": true, "eos_token": {"content": "</s>"}}'
    )
    ids = load_llama_tokenizer(tmp_path).encode("the").ids
    assert (ids[0] == 1, ids[-1]) == (False, 2)


@pytest.mark.parametrize("content", [None, "{", "{}", "[]"])
def test_tokenizer_that_cannot_be_read_is_named(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"tokenizer.json: .*(no tokenizer|damaged)"):
        load_llama_tokenizer(tmp_path)


# The demo's frame


def _encode(texts: Sequence[str]) -> list[list[int]]:
    return [[len(word) for word in text.split()] for text in texts]


_RECORD = {"id": "qa.1", "system_prompt": "Be brief.", "question": "Why?", "response": "So it is."}


def test_chat_frame_has_the_columns_of_the_benchmark(tmp_path: Path) -> None:
    frame = build_chat_frame([_RECORD, _RECORD | {"id": "qa.2", "system_prompt": ""}], _encode)
    assert list(frame.columns) == FRAME_SCHEMA.names
    asked = "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    system = "<|im_start|>system\nBe brief.<|im_end|>\n"
    assert frame["input"].tolist() == [system + asked, asked]
    assert frame["origin"].tolist() == ["qa", "qa"]
    assert frame["tok_output"][0].tolist() == [2, 2, 3]
    write_frame(frame, tmp_path / "demo.parquet")
    assert pd.read_parquet(tmp_path / "demo.parquet")["tok_input_length"].tolist() == [6, 3]


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([_RECORD, {"id": "qa.2"}], "Record 2: 'system_prompt' is None"),
        ([_RECORD | {"question": ""}], "Record 1: 'question' is ''"),
        ([_RECORD, _RECORD], "Two records have the id 'qa.1'"),
        (
            [_RECORD | {"question": "a " * 507}],
            "'qa.1' has a prompt of 513 tokens; the limit is 511",
        ),
    ],
)
def test_record_that_cannot_be_a_sample_is_named(
    records: list[dict[str, object]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        build_chat_frame(records, _encode)


def test_bench_reports_speed_and_memory() -> None:
    figures = bench_data_build(800)
    assert figures["rows"] == 800
    assert figures["rows_per_second"] > 0
    assert 10e6 < figures["peak_memory_bytes"] < 4e9
