"""The rules of a result's runs: performance, accuracy, TEST06."""

from __future__ import annotations

from paceline.mlperf.rules import BENCHMARKS, MLPERF_CONF, ROUNDS, Source
from paceline.mlperf.tree_rules import (
    ACCURACY_FILES,
    ACCURACY_LOG_BYTES_MAX,
    COMPLIANCE_FILES,
    TEST06,
    TRUNCATED_BYTES,
    checker_source,
    old_checker_source,
)
from paceline.submission.check.findings import CheckRule, Official

__all__ = ["RUN_RULES"]

_PERFORMANCE = "checks/performance_check.py"
_ACCURACY = "checks/accuracy_check.py"
_COMPLIANCE = "checks/compliance_check.py"
_PACELINE = Source("paceline", "docs/rules.md", "docs/rules.md", "What paceline adds")
_TARGETS = BENCHMARKS["llama2-70b-99.9"].accuracy["rouge1"].source
_LATENCY = BENCHMARKS["llama2-70b-99.9"].latency["Interactive"].source
_RESULTS = Source(MLPERF_CONF.repository, MLPERF_CONF.commit, "loadgen/results.cc", "result_...")
_LIMITS = checker_source("LLM_LATENCY_LIMITS")


def _performance(symbol: str) -> Source:
    return checker_source(f"PerformanceCheck.{symbol}", module=_PERFORMANCE)


def _accuracy(symbol: str) -> Source:
    return checker_source(f"AccuracyCheck.{symbol}", module=_ACCURACY)


def _rule(name: str, text: str, source: Source, mend: str, official: Official) -> CheckRule:
    return CheckRule(name=name, text=text, source=source, mend=mend, official=official)


_AGAIN = "run it again (`paceline run`); a run cannot be mended"
_COPY = "copy the whole log of the run again"
_SCORE = "score the run's own accuracy log again (`paceline run --mode accuracy`)"
_TRUNCATE = "truncate the log with its hash (`paceline submit` does; truncate_accuracy_log.py)"
_TEST = "run it again (`paceline run --mode compliance`)"

# fmt: off
RUN_RULES = (
    _rule("performance-log", "The performance run's detail log is there.",
          _performance("missing_check"), _COPY, "checks"),
    _rule("performance-log-sound", "Every line of it is a record of LoadGen's.",
          checker_source("LoadgenParser.__init__", module="parsers/loadgen_parser.py"), _COPY,
          "checks"),
    _rule("performance-no-errors", "LoadGen logged no error.",
          _performance("loadgen_errors_check"), _AGAIN, "dropped"),
    _rule("performance-mode", "It is a performance run.", _PACELINE, _AGAIN, "never"),
    _rule("performance-no-audit", "It took no settings from an audit.config.", TEST06.source,
          "remove audit.config from the working directory, and run it again", "never"),
    _rule("performance-no-sampling", "It logged no sample's answer.", TEST06.source,
          "remove accuracy_log_* from the configuration, and run it again", "never"),
    _rule("performance-no-answers", "Its accuracy log is empty.", TEST06.source,
          "copy the file of this run: `[` and `]`", "never"),
    _rule("round-seeds", "It has the seeds of the round.", ROUNDS["v6.1"].seeds.source,
          "run it with the round's LoadGen wheel, or check for the round of the seeds", "checks"),
    _rule("scenario-of-directory", "LoadGen ran the directory's scenario.",
          _performance("inferred_check"), "put the run where it belongs", "checks"),
    _rule("performance-sample-count", "All 24,576 samples were loaded.",
          _performance("performance_sample_count_check"), _AGAIN, "checks"),
    _rule("token-latencies", "LoadGen counted tokens.", _performance("llm_check"),
          "use LoadGen's model key llama2-70b, and run it again", "checks"),
    _rule("equal-issue", "All samples were issued equally often.",
          old_checker_source("Config.requires_equal_issue"), _AGAIN, "dropped"),
    _rule("no-special-issue", "No unique or same-sample issue mode was on.", _PACELINE, _AGAIN,
          "never"),
    _rule("run-valid", "LoadGen calls the run VALID.",
          old_checker_source("check_performance_dir: result_validity"), _AGAIN, "dropped"),
    _rule("early-stopping", "Early stopping was met.", _performance("latency_check"),
          "lower target_qps, and run it again", "checks"),
    _rule("min-duration", "It was configured to last 600 s.", _performance("min_duration_check"),
          "min_duration = 600000 in user.conf, and run it again", "checks"),
    _rule("ran-long-enough", "It lasted 600 s.", _RESULTS,
          "raise target_qps (Offline), and run it again", "never"),
    _rule("offline-samples", "Offline issues at least 24,576 samples.",
          _performance("min_query_count_check"), "do not lower min_query_count", "checks"),
    _rule("figures-consistent", "Its figures follow from each other.", _RESULTS, _COPY, "never"),
    _rule("latency-ttft", "The 99th percentile of time to first token is below its limit.",
          _LIMITS, "lower target_qps, and run it again", "checks"),
    _rule("latency-tpot", "The 99th percentile of time per output token is below its limit.",
          _LIMITS, "lower target_qps, and run it again", "checks"),
    _rule("latency-limit-ttft", "LoadGen judged it by the scenario's own first token limit.",
          _LATENCY, "use LoadGen's model key llama2-70b-interactive for Interactive", "never"),
    _rule("latency-limit-tpot", "LoadGen judged it by the scenario's own output token limit.",
          _LATENCY, "use LoadGen's model key llama2-70b-interactive for Interactive", "never"),
    _rule("metric", "It has a result in tokens/s.",
          _performance("get_performance_metric_check"), _COPY, "checks"),
    _rule("summary", "Its summary is there.", ACCURACY_FILES.source, _COPY, "dropped"),
    _rule("summary-agrees", "Its summary says what its detail log says.", _PACELINE, _COPY,
          "never"),
    _rule("accuracy-log", "The accuracy run's detail log is there.",
          checker_source("Loader.load", module="loader.py"), _COPY, "checks"),
    _rule("accuracy-log-sound", "Every line of it is a record of LoadGen's.",
          checker_source("LoadgenParser.__init__", module="parsers/loadgen_parser.py"), _COPY,
          "checks"),
    _rule("accuracy-no-errors", "LoadGen logged no error.", _accuracy("loadgen_errors_check"),
          _AGAIN, "checks"),
    _rule("accuracy-mode", "It is an accuracy run.", _PACELINE,
          "put the accuracy run's logs there: `paceline run --mode accuracy`, without audit.config",
          "never"),
    _rule("accuracy-all-samples", "It covers all 24,576 samples.", _accuracy("dataset_check"),
          _AGAIN, "checks"),
    _rule("accuracy-run-ended", "It ran to its end.", _PACELINE, _AGAIN, "never"),
    _rule("same-system", "Both runs name the same system and sample library.", _PACELINE,
          "pair the runs of one system", "never"),
    _rule("same-round", "Both runs are of one round.", _PACELINE, "pair the runs of one round",
          "never"),
    _rule("same-loadgen", "Both runs were made with one LoadGen.", _PACELINE,
          "install one wheel for both", "never"),
    _rule("accuracy-txt", "accuracy.txt gives the four figures, each once.",
          checker_source("ACC_PATTERN"), _SCORE, "checks"),
    _rule("accuracy-target", "They reach the benchmark's targets.", _TARGETS,
          "quantise with more care, or submit to open", "checks"),
    _rule("accuracy-gen-num", "They are over all samples.", _PACELINE, _SCORE, "never"),
    _rule("accuracy-tokens-agree", "Tokens per sample follow from their sum.", _PACELINE, _SCORE,
          "never"),
    _rule("accuracy-json", "The accuracy log is there and can be read.",
          _accuracy("accuracy_json_check"), _COPY, "checks"),
    _rule("accuracy-truncated", "It is truncated.", ACCURACY_LOG_BYTES_MAX.source, _TRUNCATE,
          "checks"),
    _rule("accuracy-hash", "accuracy.txt has one SHA-256 of it.",
          _accuracy("accuracy_result_check"), _TRUNCATE, "checks"),
    _rule("accuracy-hash-of-log", "A whole log has that SHA-256; another is truncated in form.",
          TRUNCATED_BYTES.source, _TRUNCATE, "never"),
    _rule("accuracy-entries", "The entries that it shows are sound.", _PACELINE, _COPY, "never"),
    _rule("accuracy-tokens-recounted", "A whole log has as many tokens as accuracy.txt says.",
          _PACELINE, _SCORE, "never"),
    _rule("same-tokens-per-sample", "Both runs answer at about the same length.", _PACELINE,
          "find out why: both runs answer the same questions", "never"),
    _rule("test06-present", "TEST06 is there, with its raw data.", COMPLIANCE_FILES.source, _TEST,
          "checks"),
    _rule("test06-verified", "Its verification passed.",
          checker_source("ComplianceCheck.accuracy_check", module=_COMPLIANCE), _TEST, "checks"),
    _rule("test06-raw", "Its raw data are 100 answers, each a sample's.", TEST06.source,
          "copy the whole log, which is not to be truncated", "never"),
    _rule("test06-whole", "Its raw data are whole, as today's test writes them.", TEST06.source,
          "copy the whole log, which is not to be truncated", "never"),
    _rule("test06-recomputed", "The checks hold on its raw data.", COMPLIANCE_FILES.source,
          "mend the harness (first token in the answer, one EOS, true n_tokens); run it again",
          "never"),
    _rule("test06-claims", "Its verification is that of its raw data.", COMPLIANCE_FILES.source,
          _TEST, "never"),
    _rule("test06-answer-length", "No answer is longer than max_new_tokens.", _PACELINE,
          "max_new_tokens = 1024, the end-of-sequence included", "never"),
)
# fmt: on
