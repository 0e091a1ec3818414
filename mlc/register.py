"""Put the script of this folder into a checkout of mlperf-automations: `python register.py REPO`.

Copies app-mlperf-inference-paceline to REPO/script, and adds the implementation "paceline" to the
two scripts that choose one: a variation of app-mlperf-inference, and the choice of
run-mlperf-inference-app. Run twice, it changes nothing the second time. What it makes is what a
pull request to mlcommons/mlperf-automations holds.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

NAME = "app-mlperf-inference-paceline"
VARIATION = """\
  paceline:
    group: implementation
    default_variations:
      device: cuda
      backend: pytorch
      reproducibility: r6.1-dev_default
    prehook_deps:
    - names:
      - paceline
      - paceline-harness
      - mlperf-inference-implementation
      tags: reproduce,mlperf,inference,paceline
      skip_if_env:
        MLC_SKIP_RUN:
        - true
    env:
      MLC_MLPERF_IMPLEMENTATION: paceline
"""


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python register.py MLPERF_AUTOMATIONS_CHECKOUT", file=sys.stderr)
        return 2
    scripts = Path(arguments[0]) / "script"
    if not (scripts / "app-mlperf-inference/meta.yaml").is_file():
        print(f"{arguments[0]} is no checkout of mlperf-automations", file=sys.stderr)
        return 2
    shutil.copytree(Path(__file__).parent / NAME, scripts / NAME, dirs_exist_ok=True)
    edit(scripts / "app-mlperf-inference/meta.yaml", variation)
    edit(scripts / "run-mlperf-inference-app/meta.yaml", choice)
    return 0


def edit(path: Path, change) -> None:
    text = path.read_text(encoding="utf-8")
    changed = change(text)
    if changed != text:
        path.write_text(changed, encoding="utf-8")
        print(path)


def variation(text: str) -> str:
    """The implementation, and no second scoring: paceline's accuracy.txt is there already."""
    if "\n  paceline:\n" not in text:
        text = insert(text, "\n  redhat:\n", "\n" + VARIATION.rstrip("\n"), before=True)
    start = text.index("\n  llama2-70b_:\n")
    end = text.index("tags: run,accuracy,mlperf,_open-orca", start)
    hook = text[start:end]
    if "        - paceline\n" not in hook:
        hook = insert(hook, "        - nvidia\n", "        - paceline\n", before=False)
    return text[:start] + hook + text[end:]


def choice(text: str) -> str:
    """--implementation=paceline in --help."""
    start = text.index("\n  implementation:\n    choices:\n")
    end = text.index("    desc: ", start)
    if "    - paceline\n" in text[start:end]:
        return text
    return f"{text[:end]}    - paceline\n{text[end:]}"


def insert(text: str, anchor: str, addition: str, *, before: bool) -> str:
    place = text.index(anchor) + (0 if before else len(anchor))
    return text[:place] + addition + text[place:]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
