"""A site shows what the repository holds, ranks what passes, and works from a file."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from browser import Browser
from support import Paceline

from paceline.errors import InputError
from paceline.report.ranking import places, ranked_groups
from paceline.report.results import read_results
from paceline.report.site import build_site
from paceline.submission.check.sample_tree import SampleTree, write_sample_tree

ROWS = "Array.from(document.querySelectorAll('#results tbody tr')).filter(r => r.offsetParent)"
HOSTILE = "<img src=x onerror='window.hostile=1'></script><script>window.hostile=1</script>"


def tree(
    root: Path, *, submitter: str = "Team_A", round_name: str = "v6.1", systems: int = 1
) -> Path:
    sample = SampleTree(submitter=submitter, round_name=round_name, num_systems=systems)
    return write_sample_tree(root, sample)


def system_file(root: Path, submitter: str, number: int = 0) -> Path:
    return root / f"closed/{submitter}/systems/example-{number:04d}.json"


def describe(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def scaled_by(factor: float) -> Callable[[re.Match[str]], str]:
    return lambda match: f"{match[1]}{float(match[2]) * factor:.6g}"


def slow_down(root: Path, submitter: str, factor: float) -> None:
    """Scale the Offline result of a submitter's first system."""
    pattern = f"closed/{submitter}/results/example-0000/*/Offline/performance/run_1"
    (folder,) = root.glob(pattern)
    for name in ("mlperf_log_detail.txt", "mlperf_log_summary.txt"):
        text = (folder / name).read_text()

        for key, by in (
            (r'"key": "result_(?:tokens|samples)_per_second", "value": ', factor),
            (r'"key": "result_(?:max|99.00_percentile)_latency_ns", "value": ', 1 / factor),
            (r"(?:Tokens|Samples) per second: ", factor),
        ):
            text = re.sub(f"({key})([0-9.]+)", scaled_by(by), text)
        (folder / name).write_text(text)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "repo"
    for submitter in ("Team_A", "Team_B", "Team_C"):
        tree(root, submitter=submitter)
    describe(system_file(root, "Team_A"), accelerator_model_name="NVIDIA H200")
    describe(
        system_file(root, "Team_B"), accelerator_model_name="NVIDIA H100", accelerators_per_node="4"
    )
    describe(system_file(root, "Team_C"), accelerator_model_name="AMD Instinct MI300X")
    slow_down(root, "Team_B", 0.75)
    return root


def test_the_command_counts_what_it_shows(
    repository: Path, tmp_path: Path, paceline: Paceline
) -> None:
    shown = paceline("site", repository, "--out", tmp_path / "site")
    assert shown.code == 0, shown
    assert "6 results, 6 pass their check" in shown.out
    assert (tmp_path / "site/index.html").is_file()
    assert len(list((tmp_path / "site/submissions").iterdir())) == 3


def test_scores_are_within_a_hardware_category(repository: Path) -> None:
    found = {r.location: r for r in read_results(repository).results}
    placed = places(ranked_groups(list(found.values())))
    offline = {
        result.submitter: placed[location]
        for location, result in found.items()
        if result.scenario == "Offline"
    }
    assert offline["Team_A"].score == offline["Team_C"].score == 100
    assert offline["Team_B"].score == pytest.approx(75, abs=0.01)
    assert [offline[f"Team_{x}"].by_throughput for x in "ABC"] == [1, 2, 1]
    # Half the cards and three quarters of the tokens: the better card.
    assert [offline[f"Team_{x}"].by_accelerator for x in "ABC"] == [2, 1, 1]
    assert [offline[f"Team_{x}"].of for x in "ABC"] == [2, 2, 1]


def test_a_result_that_fails_its_check_is_shown_and_not_placed(
    repository: Path, tmp_path: Path
) -> None:
    (folder,) = repository.glob("closed/Team_A/results/example-0000/*/Offline/accuracy")
    (folder / "accuracy.txt").write_text("nothing here\n")
    results = build_site(repository, tmp_path / "site").results
    offline = next(r for r in results if r.submitter == "Team_A" and r.scenario == "Offline")
    assert not offline.passed
    rows = json.loads((tmp_path / "site/summary_results.json").read_text())
    row = next(r for r in rows if r["Location"] == offline.location)
    assert (row["passes"], row["score"], row["place_by_throughput"]) == (False, None, None)
    page = (tmp_path / "site" / offline.page).read_text()
    assert "is refused" in page
    assert "accuracy.txt" in page


def test_a_rehearsal_is_shown_as_one_and_not_placed(repository: Path, tmp_path: Path) -> None:
    describe(
        system_file(repository, "Team_A"),
        sw_notes="REHEARSAL: this is no measurement of a system and must not be submitted.",
    )
    found = build_site(repository, tmp_path / "site").results
    own = [result for result in found if result.submitter == "Team_A"]
    assert [result.word for result in own] == ["REHEARSAL", "REHEARSAL"]
    assert not {result.location for result in own} & set(places(ranked_groups(found)))
    assert "Team_A" not in (tmp_path / "site/top.html").read_text()


def test_a_result_without_a_figure_is_listed_with_the_reason(
    repository: Path, tmp_path: Path
) -> None:
    (log,) = repository.glob("closed/Team_C/results/*/*/Server/performance/run_1/*detail.txt")
    log.write_text("no log\n")
    found = build_site(repository, tmp_path / "site")
    assert len(found.results) == 5
    (skipped,) = found.skipped
    assert "Team_C" in skipped.path
    assert "Team_C" in (tmp_path / "site/index.html").read_text().split("Not shown")[1]


def test_trees_of_several_rounds_and_layouts_lie_side_by_side(tmp_path: Path) -> None:
    tree(tmp_path / "repo/v5.1", round_name="v5.1")
    tree(tmp_path / "repo/v6.0", round_name="v6.0")
    found = read_results(tmp_path / "repo").results
    assert {(r.round, r.location.split("/")[0]) for r in found} == {
        ("v5.1", "v5.1"),
        ("v6.0", "v6.0"),
    }
    assert len({result.page for result in found}) == 2
    assert all(result.passed for result in found)


def test_the_summary_has_the_keys_of_the_official_pages(repository: Path, tmp_path: Path) -> None:
    build_site(repository, tmp_path / "site")
    rows = json.loads((tmp_path / "site/summary_results.json").read_text())
    assert {"ID", "Submitter", "Platform", "Model", "Scenario", "a#", "Accelerator"} <= set(rows[0])
    assert {"Performance_Result", "Performance_Units", "version", "Location"} <= set(rows[0])
    assert [r["Performance_Result"] for r in rows] == sorted(
        (r["Performance_Result"] for r in rows), reverse=True
    )


def test_what_is_no_site_is_not_replaced(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="no site"):
        build_site(repository, tmp_path / "mine")
    with pytest.raises(InputError, match="holds the repository"):
        build_site(repository, tmp_path / "repo/..")
    build_site(repository, tmp_path / "site")
    build_site(repository, tmp_path / "site")
    assert (tmp_path / "mine/thesis.txt").exists()
    assert not (tmp_path / "site.old").exists()


def test_a_directory_without_a_tree_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no submission"):
        read_results(tmp_path)


def test_real_results_are_in_their_place_per_accelerator(real_logs: Path, tmp_path: Path) -> None:
    found = build_site(real_logs / "amd-v5.1", tmp_path / "site")
    offline = next(r for r in found.results if "MI300X" in r.platform and r.scenario == "Offline")
    assert offline.tokens_per_second == pytest.approx(27803.9)
    assert offline.per_accelerator == pytest.approx(3475.49, abs=0.01)
    place = places(ranked_groups(found.results))[offline.location]
    assert place.of_published == (8, 10)  # the published 27,804 is this very result
    page = (tmp_path / "site" / offline.page).read_text()
    assert "27,803.9 tokens/s" in page
    assert "8 among 10 published" in page
    server = next(r for r in found.results if r.scenario == "Server")
    assert server.latencies_ms["ttft_p99_ms"] == pytest.approx(1914.647645)
    # Its accuracy log is of a TEST06 run.
    refused = next(r for r in found.results if "MI325X" in r.platform and r.scenario == "Offline")
    assert not refused.passed


def test_the_table_sorts_and_filters(repository: Path, tmp_path: Path, browser: Browser) -> None:
    build_site(repository, tmp_path / "site")
    page = (tmp_path / "site/index.html").as_uri()
    browser.look()
    browser.open(page)
    figures = f"{ROWS}.map(r => parseFloat(r.cells[1].textContent.replace(/,/g, '')))"
    first = browser.evaluate(figures)
    assert first == sorted(first, reverse=True)
    assert len(set(first)) > 1
    browser.evaluate("document.querySelector('#results th:nth-child(2) button').click()")
    assert browser.evaluate(figures) == sorted(first)
    sort = "document.querySelector('#results th:nth-child(2)').getAttribute('aria-sort')"
    assert browser.evaluate(sort) == "ascending"
    browser.evaluate(
        "(s => {s.value = 'AMD GPUs'; s.dispatchEvent(new Event('input', {bubbles: true}))})"
        "(document.querySelector('select[name=hardware]'))"
    )
    assert browser.evaluate(f"{ROWS}.map(r => r.cells[5].textContent)") == ["Team_C", "Team_C"]
    assert browser.evaluate("document.getElementById('count').textContent") == "2 of 6 results"
    browser.evaluate("document.querySelector('button[type=reset]').click()")
    browser.wait_for(f"{ROWS}.length === 6")
    browser.evaluate(
        "(t => {t.value = 'team_b offline'; t.dispatchEvent(new Event('input', {bubbles: true}))})"
        "(document.querySelector('input[name=text]'))"
    )
    assert browser.evaluate(f"{ROWS}.length") == 1
    assert browser.problems == []
    assert browser.requests == [page]


def test_any_two_systems_can_be_compared(
    repository: Path, tmp_path: Path, browser: Browser
) -> None:
    build_site(repository, tmp_path / "site")
    browser.open((tmp_path / "site/compare.html").as_uri())
    browser.evaluate(
        "(f => {const p = n => Array.from(f.a.options).findIndex(o => o.text.includes(n));"
        "f.a.value = p('Team_A'); f.b.value = p('Team_B');"
        "f.a.dispatchEvent(new Event('change', {bubbles: true}))})"
        "(document.getElementById('choose').elements)"
    )
    text = browser.evaluate("document.getElementById('comparison').innerText")
    assert re.search(r"Offline, tokens/s\s+[\d,.]+\s+[\d,.]+\s+-25\.0 %", text), text
    assert re.search(r"Offline, tokens/s of a card\s+[\d,.]+\s+[\d,.]+\s+\+50\.0 %", text), text
    assert re.search(r"accelerator model name\s+NVIDIA H200\s+NVIDIA H100", text), text
    assert "host memory" not in text
    assert browser.evaluate("location.hash").count(",") == 1
    assert browser.problems == []


def test_names_from_a_repository_are_text(
    repository: Path, tmp_path: Path, browser: Browser
) -> None:
    describe(system_file(repository, "Team_A"), accelerator_model_name=HOSTILE, framework=HOSTILE)
    found = build_site(repository, tmp_path / "site")
    page = next(r.page for r in found.results if r.submitter == "Team_A")
    for name in ("index.html", "top.html", "compare.html", page):
        browser.open((tmp_path / "site" / name).as_uri())
        assert browser.evaluate("window.hostile") is None
        assert browser.evaluate("document.querySelectorAll('img').length") == 0
        assert browser.problems == []


def test_every_link_of_every_page_leads_somewhere(repository: Path, tmp_path: Path) -> None:
    build_site(repository, tmp_path / "site")
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) == 6
    for page in pages:
        for link in re.findall(r'href="([^"#][^"]*)"', page.read_text()):
            assert link == "data:," or (page.parent / link).exists(), (page, link)


@pytest.mark.slow
def test_two_thousand_results_load_in_less_than_a_second(tmp_path: Path, browser: Browser) -> None:
    for number in range(20):
        tree(tmp_path / "repo", submitter=f"Team_{number:02d}", systems=50)
    found = build_site(tmp_path / "repo", tmp_path / "site")
    assert len(found.results) == 2000
    browser.look()
    took = []
    for _ in range(3):
        browser.open((tmp_path / "site/index.html").as_uri())
        browser.evaluate("new Promise(done => setTimeout(done, 50))")
        timing = "performance.getEntriesByType('navigation')[0].loadEventEnd"
        took.append(browser.evaluate(timing))
    assert min(took) < 1000, took
    assert browser.evaluate(f"{ROWS}.length") == 200
    browser.evaluate("document.getElementById('more').click()")
    assert browser.evaluate(f"{ROWS}.length") == 1200
