"""`mlcr generate,inference,submission`, `push,...`, `process,...` and `get,...` as our commands."""

from __future__ import annotations

import platform
import re
from pathlib import Path

from paceline.cli.mlcr_run import ROOT, latest, remembered
from paceline.cli.mlcr_words import Translation, Words, is_yes, refuse_unknown
from paceline.errors import InputError
from paceline.rundir import RunDir

__all__ = [
    "translate_accuracy",
    "translate_dataset",
    "translate_generate",
    "translate_model",
    "translate_push",
]

_OUT = ROOT / "submission"
_GENERATE = {
    "category": "datacenter",
    "clean": "mv OUT OUT.previous",
    "division": "--division",
    "get_platform_details": "nothing: `paceline system` reads them",
    "hw_name": "--system, and --set system_name",
    "hw_notes_extra": "--set hw_notes",
    "quiet": "nothing: paceline asks nothing",
    "rehearsal": "--rehearsal; a flag of paceline's",
    "results_dir": "where runs lie",
    "run_checker": "yes: it always runs",
    "run_style": "valid",
    "submission_dir": "--out",
    "submitter": "--submitter",
    "sw_notes_extra": "--set sw_notes",
    "system": "--system: a file of `paceline system --out`; a flag of paceline's",
    "tar": "yes: a tarball is always made of a tree that passes",
    "version": "--round",
}
_GENERATE_REFUSED = {
    "analyzer_settings_file": "power is not measured by MLPerf's meter here.",
    "dashboard": "there is no dashboard; see paceline site.",
    "device": "the runs know their device.",
    "extra_checker_args": "paceline check has no switch that makes it milder.",
    "noinfer_low_accuracy_results": "paceline infers no result from another.",
    "noinfer_scenario_results": "paceline infers no result from another.",
    "power_settings_file": "power is not measured by MLPerf's meter here.",
    "preprocess_submission": "a tree needs none.",
    "skip_compliance": "the closed division asks for TEST06.",
    "skip_truncation": "the official checker refuses a whole accuracy log.",
    "submitter_id": "paceline uploads to no submission server; give the tarball to its page.",
    "MLC_GITHUB_PAT": "a token in a command ends in the shell's history; export GITHUB_TOKEN.",
}
_GENERATE_VARIABLES = {
    "MLC_TAR_OUTFILE": "a copy of the tarball",
    "MLC_DETERMINE_MEMORY_CONFIGURATION": "nothing: `paceline system` asks dmidecode",
}
_PUSH = {
    "branch": "--branch",
    "commit_message": "--commit-message",
    "quiet": "nothing: paceline asks nothing",
    "rehearsal": "--rehearsal; a flag of paceline's",
    "repo_branch": "--branch",
    "repo_url": "--repo-url",
    "submission_dir": "the submission",
    "submitter": "--submitter; a flag of paceline's",
}
_MODEL = {
    "checkpoint": "the checkpoint's folder",
    "outdirname": "OUT of model fetch",
    "quiet": "nothing",
    "use_service_account": "model fetch uses one that the environment names",
}
# Where MLC's ways of fetching lead. The first is MLC's own default.
_MLCOMMONS = "https://llama2.mlcommons-storage.org/metadata/llama-2-70b-chat-hf.uri"
_HUB = "meta-llama/Llama-2-70b-chat-hf"
_SOURCES = {"mlc": _MLCOMMONS, "r2-downloader": _MLCOMMONS, "hf": _HUB}
_PLAIN_VARIATIONS = ("pytorch", "70b", "fp32")
_NO_SOURCE = {
    "rclone": "paceline has no rclone; _r2-downloader fetches the same files",
    "pre-quantized": "paceline quantize makes one from the checkpoint",
}
_DATASET = {
    "outdirname": "--out of data build",
    "parquet": "OpenOrca's raw file; a flag of paceline's",
    "path": "a dataset that is there",
    "checkpoint": "the tokenizer's folder",
    "quiet": "nothing",
}
_SECRETS = {
    "client_id": "a secret in a command ends in the shell's history; export CF_ACCESS_CLIENT_ID.",
    "client_secret": "a secret in a command ends in the shell's history; "
    "export CF_ACCESS_CLIENT_SECRET.",
    "hf_token": "a token in a command ends in the shell's history; export HF_TOKEN.",
}
_NO_DOWNLOAD = dict.fromkeys(
    ("use_service_account", "client_id", "client_secret", "hf_token"),
    "paceline downloads nothing and needs no credentials.",
)


def translate_generate(words: Words, cwd: Path) -> Translation:
    """The submission of the newest whole runs. Raises InputError."""
    refuse_unknown(words, known=_GENERATE, refused=_GENERATE_REFUSED, variables=_GENERATE_VARIABLES)
    made, flags = Translation(notes=list(words.notes)), words.flags
    for name, why in (("run_checker", "the check"), ("tar", "the tarball")):
        if not is_yes(words, name, default=True):
            raise InputError(f"mlcr: --{name}=no: {why} is part of paceline submit.")
    if flags.get("category", "datacenter") != "datacenter":
        raise InputError(
            f"mlcr: --category={flags['category']}: llama2-70b is a datacenter benchmark."
        )
    submitter = flags.get("submitter")
    if submitter is None:
        raise InputError("mlcr: --submitter is not given; MLC would write MLCommons.")
    runs = _runs(words, cwd, made)
    out = Path(flags.get("submission_dir", str(_OUT)))
    if (cwd / out).exists():
        _aside(words, cwd, out, made)
    name = flags.get("hw_name", platform.node())
    name = flags.get("system") or re.sub(r"[^A-Za-z0-9._+-]+", "_", name).strip("._+-")
    arguments: list[str | Path] = [*runs, "--submitter", submitter, "--system", name]
    arguments += ["--division", flags.get("division", "open"), "--out", out]
    if "version" in flags:
        arguments += ["--round", flags["version"]]
    settings = {
        "system_name": "hw_name",
        "hw_notes": "hw_notes_extra",
        "sw_notes": "sw_notes_extra",
    }
    for field, flag in settings.items():
        arguments += ["--set", f"{field}={flags[flag]}"] if flag in flags else []
    arguments += ["--rehearsal"] if is_yes(words, "rehearsal") else []
    made.paceline("submit", *arguments)
    target = words.environment.get("MLC_TAR_OUTFILE")
    if target is not None:
        kind = "rehearsal" if is_yes(words, "rehearsal") else "submission"
        made.add("copy", out / f"mlperf_{kind}.tar.gz", target)
    if "MLC_DETERMINE_MEMORY_CONFIGURATION" in words.environment:
        made.notes.append("The memory's configuration is read by paceline system, with dmidecode.")
    return made


def _runs(words: Words, cwd: Path, made: Translation) -> list[Path]:
    """The newest whole run of each test below the results. Raises InputError."""
    style = words.flags.get("run_style", "valid")
    root = Path(words.flags.get("results_dir", str(ROOT)))
    if style == "test" and not is_yes(words, "rehearsal"):
        made.notes.append(
            "--run_style=test: the guide's slip. Its valid runs are in valid_results, and those "
            "are taken; test runs make no submission (--rehearsal makes a rehearsal of them)."
        )
        style = "valid"
    base = root / f"{style}_results"
    systems = sorted(path for path in (cwd / base).glob("*") if path.is_dir())
    if len(systems) > 1:
        names = ", ".join(path.name for path in systems)
        raise InputError(
            f"mlcr: {base} holds the runs of several implementations: {names}.",
            hint="move all but one away, or paceline submit RUN_DIR...",
        )
    runs = []
    for place in sorted({re.sub(r"-\d+$", "", path.name) for s in systems for path in s.iterdir()}):
        newest = latest(base / systems[0].name / place, cwd)
        if newest is not None:
            status = RunDir.open(cwd / newest).read_manifest()["status"]
            if status != "COMPLETE":
                raise InputError(
                    f"mlcr: {newest} is {status}.", hint=f"paceline run --resume {newest}"
                )
            runs.append(newest)
    if not runs:
        raise InputError(
            f"mlcr: there is no run in {base}.",
            hint="mlcr run-mlperf,inference,... --execution_mode=valid",
        )
    return runs


def _aside(words: Words, cwd: Path, out: Path, made: Translation) -> None:
    """An earlier submission is moved away, never removed: MLC's --clean has lost some."""
    if not is_yes(words, "clean"):
        raise InputError(f"mlcr: {out} is there.", hint="--clean moves it aside")
    number = 1
    while (cwd / f"{out}.previous-{number}").exists():
        number += 1
    made.add("move", out, f"{out}.previous-{number}")


def translate_push(words: Words, cwd: Path) -> Translation:
    """The push of what `generate` made. Raises InputError."""
    refuse_unknown(words, known=_PUSH, refused=_GENERATE_REFUSED, variables={})
    made, flags = Translation(notes=list(words.notes)), words.flags
    submission = Path(flags.get("submission_dir", str(_OUT)))
    if not (cwd / submission).is_dir():
        raise InputError(
            f"mlcr: there is no submission in {submission}.",
            hint="mlcr generate,inference,submission ..., or --submission_dir=DIR",
        )
    branch = flags.get("repo_branch", flags.get("branch"))
    if "repo_url" not in flags or branch is None:
        raise InputError("mlcr: --repo_url and --repo_branch say where to push to.")
    arguments = ["push", str(submission), "--repo-url", flags["repo_url"], "--branch", branch]
    for flag, option in (("commit_message", "--commit-message"), ("submitter", "--submitter")):
        arguments += [option, flags[flag]] if flag in flags else []
    made.paceline(*arguments, *(["--rehearsal"] if is_yes(words, "rehearsal") else []))
    return made


def translate_accuracy(words: Words, cwd: Path) -> Translation:
    """The accuracy of a run, computed when it ended, or of anybody's log. Raises InputError."""
    refuse_unknown(words, known={"result_dir": "a run", "quiet": ""}, refused={}, variables={})
    found = words.flags.get("result_dir")
    if found is None:
        raise InputError("mlcr: --result_dir is not given.", hint="--result_dir=RUN_DIR")
    path = Path(found)
    run = next((p for p in (path, *path.parents) if (cwd / p / "manifest.json").is_file()), None)
    if run is None:
        return _score(words, cwd, path)
    made = Translation(notes=[*words.notes, "The run was scored when it ended; this shows it."])
    made.paceline("show", run)
    return made


def _score(words: Words, cwd: Path, path: Path) -> Translation:
    """The accuracy of a log that another harness wrote. Raises InputError."""
    if not (cwd / path / "mlperf_log_accuracy.json").is_file():
        raise InputError(
            f"mlcr: {path} holds no mlperf_log_accuracy.json.", hint="--result_dir=DIR that does"
        )
    inputs = remembered(cwd)
    if len(inputs) < 2:
        raise InputError(
            "mlcr: to score a log, checkpoint and dataset have to be known.",
            hint="mlcr get,ml-model,llama2-70b --checkpoint=DIR, then get,dataset,openorca "
            "--path=FILE",
        )
    made = Translation(notes=list(words.notes))
    made.paceline("score", path, "--data", inputs["data"], "--tokenizer", inputs["model"])
    return made


def translate_model(words: Words, cwd: Path) -> Translation:
    """The checkpoint that later commands use; fetched where none is given. Raises InputError."""
    refuse_unknown(words, known=_MODEL, refused=_SECRETS, variables={})
    checkpoint = words.flags.get("checkpoint") or remembered(cwd).get("model")
    if checkpoint is None:
        return _fetch_model(words, cwd)
    if not (cwd / checkpoint).exists():
        raise InputError(f"mlcr: there is no checkpoint {checkpoint}.")
    made = Translation(notes=_without_variations(words))
    made.add("remember", "model", (cwd / checkpoint).resolve())
    if data := remembered(cwd).get("data"):
        asked = ("--benchmark", "llama2-70b-99.9", "--model", checkpoint, "--data", data)
        made.paceline("explain", *asked)
    return made


def _fetch_model(words: Words, cwd: Path) -> Translation:
    """`paceline model fetch`, which goes on where it was left, and checks every file."""
    sources = {_SOURCES[name] for name in words.variations if name in _SOURCES}
    for name in words.variations:
        if name in _NO_SOURCE:
            raise InputError(f"mlcr: _{name} cannot be followed: {_NO_SOURCE[name]}.")
        if name not in _SOURCES and name not in _PLAIN_VARIATIONS:
            known = ", ".join(f"_{one}" for one in (*_SOURCES, *_PLAIN_VARIATIONS))
            raise InputError(f"mlcr: there is no variation _{name}.", hint=known)
    if len(sources) > 1:
        raise InputError("mlcr: several sources are named.", hint="_r2-downloader, or _hf")
    source = sources.pop() if sources else _MLCOMMONS
    out = Path(words.flags.get("outdirname", str(ROOT / "llama-2-70b-chat-hf")))
    made = Translation(notes=list(words.notes))
    login = "HF_TOKEN" if source == _HUB else "CF_ACCESS_CLIENT_ID and CF_ACCESS_CLIENT_SECRET"
    made.notes.append(f"Llama-2 has a licence to accept first; the login is taken from {login}.")
    made.paceline("model", "fetch", source, out)
    made.add("remember", "model", (cwd / out).resolve())
    return made


def translate_dataset(words: Words, cwd: Path) -> Translation:
    """The dataset that later commands use. Raises InputError."""
    refuse_unknown(words, known=_DATASET, refused=_NO_DOWNLOAD, variables={})
    flags = words.flags
    made = Translation(notes=_without_variations(words))
    if "path" in flags:
        if not (cwd / flags["path"]).is_file():
            raise InputError(f"mlcr: there is no dataset {flags['path']}.")
        made.paceline("data", "verify", flags["path"])
        made.add("remember", "data", (cwd / flags["path"]).resolve())
        return made
    tokenizer = flags.get("checkpoint") or remembered(cwd).get("model")
    if "parquet" not in flags or tokenizer is None:
        raise InputError(
            "mlcr: paceline downloads no dataset; it takes the published one, or builds it.",
            hint="--path=open_orca_gpt4_tokenized_llama.sampled_24576.pkl.gz, or "
            "--parquet=1M-GPT4-Augmented.parquet --checkpoint=DIR of Llama-2-70b-chat",
        )
    out = Path(flags.get("outdirname", str(ROOT / "openorca")))
    made.paceline("data", "build", flags["parquet"], "--tokenizer", tokenizer, "--out", out)
    made.add("remember", "data", (cwd / out / "openorca_24576.parquet").resolve())
    return made


def _without_variations(words: Words) -> list[str]:
    """Notes: how a thing would be fetched has no meaning where nothing is fetched."""
    if not words.variations:
        return list(words.notes)
    listed = ", ".join(f"_{name}" for name in words.variations)
    return [*words.notes, f"{listed}: ways of MLC to fetch it; here it is what you give."]
