"""The two ways to build the image: clean, the same, and from files that are really there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONTAINERFILE = ROOT / "containers" / "Containerfile"
DEFINITION = ROOT / "containers" / "paceline.def"
PROGRAMS = Path(sys.executable).parent


def test_the_containerfile_is_clean() -> None:
    checked = subprocess.run([PROGRAMS / "hadolint", CONTAINERFILE], capture_output=True, text=True)
    assert checked.stdout + checked.stderr == ""


def test_the_shell_of_the_apptainer_definition_is_clean() -> None:
    text = DEFINITION.read_text()
    post = text.partition("%post\n")[2].partition("\n%environment")[0]
    assert "pip install" in post
    checked = subprocess.run(
        [PROGRAMS / "shellcheck", "--shell=sh", "-"], input=post, capture_output=True, text=True
    )
    assert checked.stdout == ""


def test_both_install_the_same_environment() -> None:
    def installs(text: str) -> list[str]:
        joined = re.sub(r"\\\n\s*", "", text)
        found = re.findall(r"bin/pip install ([^&;\n]*)", joined)
        plain = [re.sub(r"\{\{ (\w+) \}\}|\$(\w+)", r"<\1\2>", one).strip() for one in found]
        return [one for one in plain if "/build" not in one]

    container, apptainer = CONTAINERFILE.read_text(), DEFINITION.read_text()
    assert installs(container) == installs(apptainer)
    assert len(installs(container)) == 3
    for name in ("VARIANT", "EXTRAS"):
        (ours,) = re.findall(rf"^ARG {name}=(\S+)$", container, re.MULTILINE)
        assert f"    {name}={ours}\n" in apptainer
    extras = (ROOT / "pyproject.toml").read_text()
    for extra in re.findall(r"EXTRAS=(\S+)", apptainer)[0].split(","):
        assert re.search(rf"^{extra} = \[", extras, re.MULTILINE), extra


def test_what_is_copied_is_in_the_context_and_nothing_secret_is() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    allowed = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    for path in allowed:
        assert (ROOT / path).exists(), path
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", CONTAINERFILE.read_text(), re.MULTILINE)
    for word in " ".join(copied).split():
        assert word.split("/")[0] in allowed, word
    listed = DEFINITION.read_text().partition("%files\n")[2].partition("\n\n")[0]
    assert {line.split()[0] for line in listed.splitlines()} == allowed
