"""`paceline model`: what it finds in a damaged checkpoint, what fits where, and how it fetches."""

from __future__ import annotations

import hashlib
import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import Paceline
from toys import FORMATS_AND_KV, calibration_of, save_llama

from paceline import models
from paceline.errors import CheckpointError, EnvironmentProblem, InputError
from paceline.models.describe import PACKED, stored_precision
from paceline.models.layout import read_model
from paceline.models.shards import bad_values, read_header
from paceline.native.checkpoint import SafetensorsSource
from paceline.native.formats import stored_format
from paceline.native.weights import build_linear
from paceline.quantize import QuantizeOptions, quantize
from paceline.quantize.scheme import quantization_config


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def copy(toy: Path, tmp_path: Path) -> Path:
    shutil.copytree(toy, tmp_path / "copy")
    return tmp_path / "copy"


def quiet(*_: object) -> None:
    return None


def failed(folder: Path, manifest: Path | None = None) -> dict[str, str]:
    found = models.verify(folder, manifest=manifest, progress=quiet)
    return {finding.rule: finding.detail for finding in found if not finding.passed}


def change(folder: Path, edit: Any) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


UP = "model.layers.1.mlp.up_proj.weight"


def test_a_whole_checkpoint_passes(copy: Path) -> None:
    assert failed(copy) == {}


@pytest.mark.parametrize(("name", "kv"), FORMATS_AND_KV)
def test_every_format_that_we_write_passes(toy: Path, tmp_path: Path, name: str, kv: bool) -> None:
    options = QuantizeOptions(format=name, is_kv_fp8=kv)
    quantize(toy, tmp_path / "out", options, samples=calibration_of(toy), progress=quiet)
    models.write_manifest(tmp_path / "out", quiet)
    assert failed(tmp_path / "out") == {}
    change(tmp_path / "out", lambda tensors: tensors.pop(next(k for k in tensors if "down" in k)))
    assert set(failed(tmp_path / "out")) == {"names", "hashes"}


@pytest.mark.parametrize(
    ("edit", "rule", "words"),
    [
        (lambda t: t.pop(UP), "names", f"{UP} is missing"),
        (lambda t: t.update(extra=torch.zeros(2)), "names", "extra is not asked for"),
        (lambda t: t.update({UP: t[UP][:-1].contiguous()}), "shapes", "up_proj"),
        (lambda t: t.update({UP: t[UP].to(torch.int16)}), "dtypes", "I16"),
        (lambda t: t[UP].__setitem__((3, 4), torch.nan), "finite", "1 values"),
        (lambda t: t[UP].__setitem__((3, 4), -torch.inf), "finite", "1 values"),
    ],
)
def test_what_is_wrong_is_found_and_named(copy: Path, edit: Any, rule: str, words: str) -> None:
    change(copy, edit)
    found = failed(copy)
    assert list(found) == [rule]
    assert words in found[rule]


@pytest.mark.parametrize("cut", [4, 60, 5000, -1])
def test_a_file_cut_short_anywhere_is_not_readable(copy: Path, cut: int) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    assert "readable" in failed(copy)


def test_nothing_passes_for_tensors_that_were_not_read(copy: Path) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    found = failed(copy)
    assert {"readable", "names", "shapes", "dtypes", "finite"} <= set(found)
    assert found["finite"] == "no tensor could be read"


def test_bytes_too_many_are_found(copy: Path) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(CheckpointError, match="its header makes"):
        read_header(path)


def test_hashes_are_read_from_sums_and_from_a_runs_manifest(copy: Path, tmp_path: Path) -> None:
    path = copy / "model.safetensors"
    data = path.read_bytes()
    sums, run = tmp_path / "sums.txt", tmp_path / "manifest.json"
    sums.write_text(f"{hashlib.md5(data).hexdigest()} *model.safetensors\n")
    sha256 = hashlib.sha256(data).hexdigest()
    run.write_text(json.dumps({"model": {"files": {"model.safetensors": sha256}}}))
    assert failed(copy, sums) == failed(copy, run) == {}
    flipped = bytearray(data)
    flipped[-1] ^= 1
    path.write_bytes(bytes(flipped))
    assert failed(copy, sums)["hashes"] == failed(copy, run)["hashes"]
    sums.write_text("no hash here\n")
    with pytest.raises(InputError, match="line 1"):
        failed(copy, sums)


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn]
)
def test_bad_values_are_counted_in_every_float_type(tmp_path: Path, dtype: torch.dtype) -> None:
    values = torch.randn(1000).to(dtype)
    values[[3, 500]] = torch.tensor(torch.nan).to(dtype)
    save_file({"x": values}, tmp_path / "x.safetensors")
    assert bad_values(tmp_path / "x.safetensors", read_header(tmp_path / "x.safetensors")[0]) == 2


LLAMA_2_70B = {
    "model_type": "llama", "num_hidden_layers": 80, "hidden_size": 8192,
    "intermediate_size": 28672, "num_attention_heads": 64, "num_key_value_heads": 8,
    "vocab_size": 32000, "torch_dtype": "bfloat16",
}  # fmt: skip


def test_llama_2_70b_is_described_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_2_70B))
    facts = models.describe(tmp_path, context_tokens=490)
    assert facts["parameters"] == 68_976_648_192
    assert facts["linear_parameters"] == 68_451_041_280
    assert facts["kv_bytes_a_token"] == 327_680
    live = {fit["card"]: fit["live_sequences"] for fit in facts["fits"]}
    h100, h200 = live["A100 / H100 80 GB"], live["H200"]
    assert h100["16 bit"] == h200["16 bit"] == 0
    assert 60 < h100["fp8, KV fp8"] < 160
    assert 450 < h100["w4a8, KV fp8"] < 560
    assert 750 < h200["fp8, KV fp8"] < 970


def described(folder: Path, name: str, *, is_kv_fp8: bool) -> dict[str, Any]:
    """What is said of Llama-2-70B in a format that `paceline quantize` writes."""
    group_len = {"mxfp4": 32, "nvfp4": 16}.get(name, 128)
    stated = quantization_config(name, group_len=group_len, is_kv_fp8=is_kv_fp8)
    config = LLAMA_2_70B | {"quantization_config": stated}
    (folder / "config.json").write_text(json.dumps(config))
    stored = stored_format(config)
    assert stored is not None
    assert read_model(folder).format == stored.name == name  # as the native engine reads it
    return models.describe(folder, context_tokens=490)


@pytest.mark.parametrize("is_kv_fp8", [False, True])
@pytest.mark.parametrize(
    ("name", "weights", "activations", "held_bits"),
    [
        ("fp8", "FP8 (e4m3), a scale each", "FP8 (e4m3), a fixed scale each", 8.0),
        ("fp8-token", "FP8 (e4m3), a scale for each output", "FP8 (e4m3), a scale for each token",
         8.0),
        ("w4a16", "4-bit integers, a scale for 128 inputs", "16 bit", 4.125),
        ("w4a8", "4-bit integers, a scale for 128 inputs", "FP8 (e4m3), a scale for each token",
         4.125),
        ("mxfp4", "4-bit floats (e2m1), a power of two for 32 inputs", "16 bit", 4.5),
        ("nvfp4", "4-bit floats (e2m1), an e4m3 scale for 16 inputs", "16 bit", 4.5),
    ],
)  # fmt: skip
def test_each_format_is_named_and_fits_as_it_is_held(
    tmp_path: Path, name: str, weights: str, activations: str, held_bits: float, is_kv_fp8: bool
) -> None:
    facts = described(tmp_path, name, is_kv_fp8=is_kv_fp8)
    assert (facts["precision"], facts["weights"], facts["activations"]) == (
        name, weights, activations,
    )  # fmt: skip
    stored_bits = 4.25 if name == "mxfp4" else held_bits
    linear, other = 68_451_041_280, 525_606_912
    assert facts["weight_bytes"] == linear * stored_bits / 8 + 2 * other
    own = f"{name}, KV fp8" if is_kv_fp8 else name
    h200 = next(fit for fit in facts["fits"] if fit["card"] == "H200")
    assert next(iter(h200["live_sequences"])) == own
    room = 141e9 - 3e9 - linear * held_bits / 8 - 2 * other
    sequence = 490 * 327_680 / (2 if is_kv_fp8 else 1)
    assert h200["live_sequences"][own] == int(room * 0.97 / sequence)


@pytest.mark.parametrize("name", ["w4a16", "w4a8", "mxfp4", "nvfp4"])
def test_a_card_holds_as_many_bits_as_are_counted(toy: Path, tmp_path: Path, name: str) -> None:
    """Counted on what the native engine loads: codes and scales, but for those of a whole row."""
    options = QuantizeOptions(format=name, is_kv_fp8=False)
    quantize(toy, tmp_path / name, options, samples=calibration_of(toy), progress=quiet)
    whole, cpu = slice(None), torch.device("cpu")
    source = SafetensorsSource(tmp_path / name)
    part = source.part("model.layers.0.mlp.down_proj", rows=whole, columns=whole, device=cpu)
    packed = build_linear([part], name, torch.float32).packed
    assert packed is not None
    held_bits = 8 * (packed.packed.nbytes + packed.scale_GN.nbytes) / (128 * 256)
    assert held_bits == stored_precision(read_model(tmp_path / name)).weight_bits
    assert held_bits == PACKED[name].weight_bits


class Hub(http.server.BaseHTTPRequestHandler):
    """A hub of one model, which breaks off in the middle of the first file, once."""

    files: dict[str, bytes] = {}  # noqa: RUF012 - set by the fixture
    token: str | None = None
    broken: set[str] = set()  # noqa: RUF012
    seen: list[tuple[str, str | None, str | None]] = []  # noqa: RUF012
    elsewhere = ""

    def log_message(self, *_: Any) -> None:
        return None

    def do_GET(self) -> None:
        own = self.headers.get("Authorization")
        self.seen.append((self.path, self.headers.get("Range"), own))
        if self.token and own != f"Bearer {self.token}" and not self.path.startswith("/cdn/"):
            return self._answer(401, b"")
        if self.path.startswith("/api/models/org/model/tree/"):
            rows = [
                {"type": "file", "path": name, "size": len(data),
                 **({"lfs": {"oid": hashlib.sha256(data).hexdigest()}} if "safe" in name else {})}
                for name, data in self.files.items()
            ]  # fmt: skip
            return self._answer(200, json.dumps(rows).encode())
        if self.path.startswith("/org/model/resolve/") and self.elsewhere:
            self.send_response(302)
            self.send_header("Location", f"{self.elsewhere}/cdn/{self.path.rsplit('/', 1)[1]}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        if self.path == "/metadata/model.uri":
            return self._answer(200, f"http://{self.headers['Host']}/data".encode())
        if self.path == "/metadata/model.md5":
            lines = [f"{hashlib.md5(d).hexdigest()}  ./{n}" for n, d in self.files.items()]
            return self._answer(200, "\n".join(lines).encode())
        data = self.files.get(self.path.rsplit("/", 1)[1])
        return self._answer(404, b"") if data is None else self._file(data)

    def _file(self, data: bytes) -> None:
        start = int((self.headers.get("Range") or "bytes=0-")[6:].rstrip("-"))
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if self.path not in self.broken and len(data) > 4096:
            self.broken.add(self.path)
            self.wfile.write(data[start : start + 4096])
            self.close_connection = True
            return
        self.wfile.write(data[start:])

    def _answer(self, code: int, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def hub(toy: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    servers = [http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) for _ in range(2)]
    threads = [threading.Thread(target=server.serve_forever) for server in servers]
    for thread in threads:
        thread.start()
    Hub.files = {path.name: path.read_bytes() for path in toy.iterdir()}
    Hub.token, Hub.broken, Hub.seen = None, set(), []
    Hub.elsewhere = f"http://127.0.0.1:{servers[1].server_port}"
    address = f"http://127.0.0.1:{servers[0].server_port}"
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield address
    for server, thread in zip(servers, threads, strict=True):
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_broken_download_goes_on_where_it_was_left(hub: str, toy: Path, tmp_path: Path) -> None:
    counts = models.fetch("org/model", tmp_path / "out", revision="main", progress=quiet)
    assert counts["tried_again"] >= 1
    assert any(asked == "bytes=4096-" for _, asked, _ in Hub.seen)
    for path in toy.iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    assert failed(tmp_path / "out") == {}
    again = models.fetch("org/model", tmp_path / "out", revision="main", progress=quiet)
    assert again["already_there"] == again["files"]


def test_the_token_is_for_the_hub_and_not_for_the_host_behind_it(
    hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Hub.token = "secret"
    with pytest.raises(InputError, match="401"):
        models.fetch("org/model", tmp_path / "out", revision="main", progress=quiet)
    monkeypatch.setenv("HF_TOKEN", "secret")
    models.fetch("org/model", tmp_path / "out", revision="main", progress=quiet)
    assert {own for path, _, own in Hub.seen if path.startswith("/cdn/")} == {None}


def test_a_file_that_came_wrong_is_thrown_away(hub: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    size = len(Hub.files["model.safetensors"])
    (out / "model.safetensors.part").write_bytes(b"\0" * (size - 10))
    with pytest.raises(EnvironmentProblem, match="another sha256"):
        models.fetch("org/model", out, revision="main", progress=quiet)
    assert not (out / "model.safetensors").exists()
    models.fetch("org/model", out, revision="main", progress=quiet)
    assert failed(out) == {}


def test_mlcommons_storage_is_read_as_its_downloader_reads_it(hub: str, tmp_path: Path) -> None:
    source = f"{hub}/metadata/model.uri"
    models.fetch(source, tmp_path / "out", revision="main", progress=quiet)
    assert failed(tmp_path / "out") == {}
    Hub.files = {"../escape.safetensors": b"x"}
    with pytest.raises(EnvironmentProblem, match="escape"):
        models.fetch(source, tmp_path / "other", revision="main", progress=quiet)


def test_a_folder_is_copied_and_checked(copy: Path, tmp_path: Path) -> None:
    models.write_manifest(copy, quiet)
    counts = models.fetch(str(copy), tmp_path / "out", revision="main", progress=quiet)
    assert counts["already_there"] == 0
    assert failed(tmp_path / "out") == {}
    (copy / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(InputError, match="another hash"):
        models.fetch(str(copy), tmp_path / "third", revision="main", progress=quiet)


def test_without_a_network_the_message_says_what_to_carry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(EnvironmentProblem, match=r"cannot be reached") as caught:
        models.fetch("org/model", tmp_path / "out", revision="main", progress=quiet)
    assert "carry" in str(caught.value)
    assert "SHA256SUMS" in str(caught.value)


def test_the_verbs_print_and_exit(paceline: Paceline, copy: Path) -> None:
    assert paceline("model", "verify", copy, "--json").json["passed"] is True
    change(copy, lambda tensors: tensors.pop(UP))
    outcome = paceline("model", "verify", copy)
    assert outcome.code == 1
    assert f"FAIL  names     {UP} is missing" in outcome.out
    assert "w4a8, KV fp8" in paceline("model", "describe", copy).out
    assert paceline("model", "verify", copy / "nowhere").code == 2
