"""A report says everything that a run has, and what it has not; it asks nobody for anything."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
from browser import Browser
from support import Paceline

from paceline.errors import InputError
from paceline.mlperf.logs import read_detail
from paceline.mlperf.published import load_published
from paceline.report import rundata
from paceline.report.hardware import CATEGORIES, CPU_ONLY, MIXED, category_of
from paceline.report.report import build_report, report_page
from paceline.report.rundata import read_run
from paceline.report.samples import read_samples
from paceline.report.speed import latencies, percentile_figure, rates
from paceline.report.standing import standing

SECTIONS = ("verdict", "standing", "timeline", "latency", "lengths", "live", "power")
SECTIONS += ("rouge", "worst", "config", "system", "history")
HOSTILE = (
    "\ud800</script><script>window.hostile = 1</script><img src=x onerror='window.hostile = 1'>"
)


class Text(HTMLParser):
    """The page's text, without scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self.parts.append(data)

    def __str__(self) -> str:
        return " ".join(" ".join(self.parts).split())


def copied(run: Path, to: Path) -> Path:
    shutil.copytree(run, to)
    return to


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def tokens_of(run: Path) -> int:
    manifest = json.loads((run / "manifest.json").read_text())
    return int(manifest["tests"]["performance"]["tokens"])


@pytest.fixture
def run(fake_run: Path, tmp_path: Path) -> Path:
    return copied(fake_run, tmp_path / "run")


def test_the_command_writes_one_page_with_every_section(run: Path, paceline: Paceline) -> None:
    shown = paceline("report", run)
    assert shown.code == 0, shown
    page = (run / "report.html").read_text()
    assert [name for name in SECTIONS if f'id="g0-s-{name}"' not in page] == []
    assert str(run / "report.html") in shown.out


def test_the_figures_are_the_verdicts(run: Path) -> None:
    text = str(Text(report_page([run], compare=False)))
    verdict = json.loads((run / "verdict.json").read_text())
    assert f"{verdict['tokens_per_second']:,.1f} tokens/s" in text
    log = read_detail(run / "performance/mlperf_log_detail.txt")
    seconds = int(str(log.get("result_max_latency_ns"))) * 1e-9
    tokens = tokens_of(run)
    assert f"{tokens:,} tokens / {seconds:,.3f} s = {tokens / seconds:,.1f}" in text
    assert f"{verdict['rouge1']:.4f}" in text
    assert "SIMULATED" in text
    assert "NOT A SUBMISSION" in text


def test_what_a_run_has_not_is_said_and_not_left_out(run: Path) -> None:
    (run / "accuracy/scores.parquet").unlink()
    for test in ("performance", "accuracy"):
        (run / test / "timeline.jsonl").unlink()
    text = str(Text(report_page([run], compare=False)))
    assert "no power.jsonl" in text
    assert "no live_sequences and no kv_used_fraction" in text
    assert "there is no scores.parquet" in text
    assert "performance test was over before its timeline had two rows" in text
    assert "Changed since the run ended: accuracy/scores.parquet" in text


def test_an_interrupted_run_has_a_report_with_the_reason(run: Path) -> None:
    edit(
        run / "manifest.json",
        status="INTERRUPTED",
        error={"kind": "InterruptedRun", "message": "Stopped by Ctrl-C."},
        tests={},
    )
    (run / "verdict.json").unlink()
    text = str(Text(report_page([run], compare=False)))
    assert "The run is INTERRUPTED: Stopped by Ctrl-C." in text
    assert "The run has no verdict yet." in text
    assert "The run has no accuracy test." in text


def powered(run: Path, rows: list[dict[str, Any]], window_s: tuple[float, float]) -> str:
    """The text of the report of a run with that power.jsonl and timed window."""
    tests = json.loads((run / "manifest.json").read_text())["tests"]
    tests["performance"]["window_s"] = window_s
    edit(run / "manifest.json", tests=tests)
    lines = [*map(json.dumps, rows), "{broken"]
    (run / "power.jsonl").write_text("\n".join(lines))
    return str(Text(report_page([run], compare=False)))


def test_energy_is_the_integral_of_every_devices_power_in_the_timed_window(run: Path) -> None:
    rows = [
        {"t_s": t, "device": f"gpu{d}", "power_w": 300 + 100 * d, "clock_mhz": 1980}
        for t in (-9, 0, 1, 2, 3)
        for d in (0, 1)
    ]
    text = powered(run, rows, (0, 2))
    rate = tokens_of(run) / 1400
    assert "2 devices; energy 1,400 J, mean 700 W, at most 700 W from the first query" in text
    assert f"{rate:,.3f} tokens for each joule" in text
    assert "Clocks during the performance test From 1,980 to 1,980 MHz." in text
    assert "power.jsonl has 1 damaged lines" in text


def test_a_nodes_reading_replaces_its_parts_and_throttling_is_told(run: Path) -> None:
    rows = []
    for t in (0, 1, 2, 3):
        gpu = {"t_s": t, "host": "a", "device": "gpu 0", "power_w": 700, "source": "nvml"}
        rows.append(gpu | {"throttles": ["power cap"] if t else []})
        rows.append(
            {"t_s": t, "host": "a", "device": "node", "scope": "node", "power_w": 1100}
            | {"source": "ipmi"}
        )
    text = powered(run, rows, (0, 3))
    assert "energy 3,300 J, mean 1,100 W" in text
    assert "no: the node's reading has it power cap 75%" in text


def test_a_moment_after_the_last_whole_second_is_no_point_of_its_own() -> None:
    made = [(1.0, 100), (2.0, 200), (2.001, 204)]
    rows = tuple({"elapsed_s": elapsed_s, "made": tokens} for elapsed_s, tokens in made)
    test = rundata.TestData(name="performance", facts={}, log=None, timeline=rows, power=())
    assert rates(test) == ([1.0, 2.001], [100.0, pytest.approx(104 / 1.001)])


def test_live_sequences_and_kv_use_are_plotted_when_the_timeline_has_them(run: Path) -> None:
    path = run / "performance/timeline.jsonl"
    rows = [
        {"elapsed_s": t, "made": 10 * t, "live_sequences": 7 * t, "kv_used_fraction": 0.25 * t}
        for t in (1, 2, 3)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    page = report_page([run], compare=False)
    assert 'id="g0-sequences-performance"' in page
    assert "At most 75.0." in page


def test_a_servers_latency_over_time_is_held_against_its_limit(run: Path) -> None:
    config = json.loads((run / "manifest.json").read_text())["config"]
    edit(run / "manifest.json", config=config | {"scenario": "Server"})
    path = run / "performance/timeline.jsonl"
    rows = [
        {"elapsed_s": t, "made": 10 * t, "ttft_p99_ms": 400.0 * t, "tpot_p99_ms": 90.0}
        for t in (1, 2, 3)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    text = str(Text(report_page([run], compare=False)))
    assert "Time to first token, 99 % so far 1,200.00 ms at the end" in text
    assert re.search(r"limit 1\.0 2,000\.00 limit 3\.0 2,000\.00", text)
    assert re.search(r"limit 1\.0 200\.00 limit 3\.0 200\.00", text)


def test_every_figure_is_one_that_plotly_knows_and_has_its_numbers_in_a_table(run: Path) -> None:
    page = report_page([run], compare=False)
    found = re.search(r'id="figures">(.*?)</script>', page)
    assert found is not None
    figures = json.loads(found[1])
    assert len(figures) >= 9
    for figure in figures.values():
        go.Figure(data=figure["data"], layout=figure["layout"])
    assert page.count("<figure>") == page.count("<details>") == len(figures)


def test_a_strangers_run_cannot_make_the_report_open_a_pickle(run: Path, tmp_path: Path) -> None:
    trap = tmp_path / "trap.pkl"
    trap.write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "opened").encode() + b"'\ntR.")
    config = json.loads((run / "manifest.json").read_text())["config"]
    edit(run / "manifest.json", config=config | {"data_path": str(trap), "trust_pickle": True})
    found = read_samples(read_run(run))
    assert any("Prompts and references are not shown" in text for text in found.missing)
    assert not (tmp_path / "opened").exists()


def test_a_comparison_starts_with_what_differs_and_only_that(run: Path, tmp_path: Path) -> None:
    other = copied(run, tmp_path / "other")
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["config"]["engine_config"]["tokens_per_second"] = 999.0
    manifest["versions"]["numpy"] = "9.9"
    (other / "manifest.json").write_text(json.dumps(manifest))
    text = str(Text(report_page([run, other], compare=True)))
    top = text[text.index("Config: what differs") : text.index("Side by side")]
    assert "engine.fake.tokens_per_second 4000 999" in top
    assert "version numpy" in top
    assert "run.benchmark" not in top
    assert "0 of 32" in text  # no sample differs from the first run


def test_a_comparison_of_one_run_is_refused(run: Path) -> None:
    with pytest.raises(InputError, match="one is given"):
        build_report([run], None, compare=True)


def test_a_run_on_cards_stands_among_published_results(run: Path) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["config"] |= {"benchmark": "llama2-70b-99.9"}
    engine = {"device": "cuda", "device_name": "NVIDIA H200", "copies": [{}, {}]}
    for test in manifest["tests"].values():
        test["engine"] = engine
    edit(run / "manifest.json", **manifest)
    edit(run / "verdict.json", tokens_per_second=8976.0)
    text = str(Text(report_page([run], compare=False)))
    assert "4,488.0 tokens/s of a card is place" in text
    assert "this run 2 x NVIDIA H200 4,488.0 8,976.0" in text
    assert "mlcommons/inference_results_v5.1@965182b0" in text


def test_published_results_name_their_round_and_source() -> None:
    published = load_published()
    assert {result.round for result in published.results} == set(published.sources)
    assert {result.category for result in published.results} <= set(CATEGORIES)
    assert len(published.results) == 57
    best = max(r.per_accelerator for r in published.results if r.accelerator == "H100")
    assert best == pytest.approx(31306.8 / 8)


def test_a_place_is_among_closed_results_of_the_same_kind_of_card() -> None:
    found = standing("NVIDIA GPUs", 4488.0, 1)
    assert found is not None
    better = [r for r in found.others if r.per_accelerator > 4488.0]
    assert found.place == len(better) + 1
    assert not [r for r in found.others if r.category != "NVIDIA GPUs" or r.division != "closed"]
    assert standing(CPU_ONLY, 10.0, 0) is None
    assert standing("Google TPUs", 10.0, 4) is None


@pytest.mark.parametrize(
    ("name", "count", "category"),
    [
        ("NVIDIA H200-SXM-141GB", 8, "NVIDIA GPUs"),
        ("H100 NVL", 2, "NVIDIA GPUs"),
        ("GB300", 72, "NVIDIA GPUs"),
        ("AMD Instinct MI300X 192GB HBM3", 8, "AMD GPUs"),
        ("MI355X", 8, "AMD GPUs"),
        ("Intel Arc Pro B60 Dual", 4, "Intel GPUs"),
        ("TPU v6e", 4, "Google TPUs"),
        ("NVIDIA H200 and AMD MI350X", 16, MIXED),
        ("Furiosa Warboy", 2, "Other accelerators"),
        ("N/A", 0, CPU_ONLY),
    ],
)
def test_a_category_is_found_from_the_name(name: str, count: int, category: str) -> None:
    assert category_of(name, count) == category
    assert category in CATEGORIES


def test_server_latencies_are_held_against_their_limits(real_logs: Path) -> None:
    place = "amd-v5.1/closed/AMD/results/8xMI300X_2xEPYC_9575F/llama2-70b-99.9/Server"
    log = read_detail(real_logs / place / "performance/run_1/mlperf_log_detail.txt")
    assert dict(latencies(log))[99.0] == pytest.approx(136.069232834)
    first = percentile_figure("ttft", "Time to first token", [(99.0, 1.914647645)], 2.0)
    assert "2,000 ms, is held" in first.summary
    broken = percentile_figure("ttft", "Time to first token", [(99.0, 2.1)], 2.0)
    assert "BROKEN" in broken.summary


def test_a_browser_draws_every_plot_and_asks_for_nothing(run: Path, browser: Browser) -> None:
    page = build_report([run], None, compare=False)
    browser.look()
    browser.open(page.as_uri())
    browser.wait_for("document.documentElement.dataset.drawn")
    drawn = browser.evaluate("document.querySelectorAll('.plot .main-svg').length")
    plots = browser.evaluate("document.querySelectorAll('.plot').length")
    assert plots >= 9
    assert drawn >= plots
    assert browser.problems == []
    assert browser.requests == [page.as_uri()]


def test_ink_follows_the_reader_into_the_dark_and_onto_paper(run: Path, browser: Browser) -> None:
    page = build_report([run], None, compare=False)
    browser.look(dark=True)
    browser.open(page.as_uri())
    browser.wait_for("document.documentElement.dataset.drawn")
    ink = "getComputedStyle(document.querySelector('.plot text')).fill"
    assert browser.evaluate(ink) == "rgb(230, 233, 237)"
    browser.look(dark=False)
    browser.wait_for(f"{ink} === 'rgb(27, 31, 36)'")
    browser.call("Emulation.setEmulatedMedia", media="print")
    browser.wait_for(f"{ink} === 'rgb(0, 0, 0)'")
    browser.call("Emulation.setEmulatedMedia", media="")
    assert browser.problems == []


def test_a_narrow_window_scrolls_down_and_never_sideways(run: Path, browser: Browser) -> None:
    page = build_report([run], None, compare=False)
    browser.look(width=420)
    browser.open(page.as_uri())
    browser.wait_for("document.documentElement.dataset.drawn")
    assert browser.evaluate("document.documentElement.scrollWidth") == 420


def test_text_of_a_log_is_shown_and_never_run(run: Path, browser: Browser) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["host"]["cpu"] = HOSTILE
    manifest["origins"]["run.mode"] = HOSTILE
    manifest["tests"]["performance"]["engine"]["device_name"] = HOSTILE
    (run / "manifest.json").write_text(json.dumps(manifest))
    verdict = json.loads((run / "verdict.json").read_text())
    verdict["findings"][0]["detail"] = HOSTILE
    (run / "verdict.json").write_text(json.dumps(verdict))
    power = {"t_s": 0, "device": HOSTILE, "power_w": 1}
    (run / "power.jsonl").write_text(json.dumps(power) + "\n" + json.dumps(power | {"t_s": 1}))
    page = build_report([run], None, compare=False)
    browser.open(page.as_uri())
    browser.wait_for("document.documentElement.dataset.drawn")
    assert browser.evaluate("window.hostile") is None
    assert browser.evaluate("document.querySelectorAll('img').length") == 0
    assert HOSTILE[1:] in browser.evaluate("document.body.textContent")
    assert browser.problems == []
