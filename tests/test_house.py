"""The house rules that a program can check, over every module of the package."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import paceline

SOURCE = Path(paceline.__file__).parent
MODULES = sorted(SOURCE.rglob("*.py"))
FILE_LINES, FUNCTION_LINES, KERNEL_LINES, PARAMETERS = 350, 45, 80, 7
FORBIDDEN_NAMES = {"utils", "common", "base", "helpers", "constants", "types"}
# Rooms whose functions may import: an engine's heavy dependency, LoadGen's one door, optional
# extras, and the command line, whose --help must be quick.
LATE_IMPORTS = (
    "engines/",
    "native/",
    "harness/loadgen.py",
    "mlperf/late.py",
    "cli/",
    "operate/tuner.py",
)
FLAGS = ("cli/__init__.py", "cli/flags_")
# All that `paceline --help` may load beside the standard library; the second line is what an
# environment brings by itself.
LIGHT_MODULES = {"annotated_doc", "click", "paceline", "shellingham", "typer", "typing_extensions"}
LIGHT_MODULES |= {"__main__", "_distutils_hack"}


def name_of(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def functions(tree: ast.Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [node for node in ast.walk(tree) if isinstance(node, kinds)]


def docstring_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """A function may say as much about itself as it needs to."""
    first = function.body[0]
    if ast.get_docstring(function) is None or first.end_lineno is None:
        return 0
    return first.end_lineno - first.lineno + 1


@cache
def is_kernel(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any("jit" in ast.unparse(decorator) for decorator in function.decorator_list)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_fits_in_one_reading(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= FILE_LINES


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_function_fits_on_one_screen(path: Path) -> None:
    for function in functions(parse(path)):
        assert function.end_lineno is not None
        lines = function.end_lineno - function.lineno + 1 - docstring_lines(function)
        if name_of(path).startswith(FLAGS):
            continue  # a verb is its flags: one line a flag, called once
        limit = KERNEL_LINES if is_kernel(function) else FUNCTION_LINES
        assert lines <= limit, f"{function.name} has {lines} lines"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_function_takes_few_parameters_and_few_by_position(path: Path) -> None:
    if name_of(path).startswith(FLAGS):
        pytest.skip("a verb's parameters are its flags")
    for function in functions(parse(path)):
        if is_kernel(function):
            continue
        names = [a.arg for a in (*function.args.posonlyargs, *function.args.args)]
        own = [name for name in names if name not in ("self", "cls")]
        total = len(own) + len(function.args.kwonlyargs)
        assert total <= PARAMETERS, f"{function.name} takes {total} parameters"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_says_what_it_is(path: Path) -> None:
    docstring = ast.get_docstring(parse(path))
    assert docstring, "no module docstring"
    assert path.stem not in FORBIDDEN_NAMES, f"{path.stem} says nothing"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_code_is_ascii(path: Path) -> None:
    path.read_bytes().decode("ascii")


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_the_public_names_are_listed_sorted_and_real(path: Path) -> None:
    if path.name == "__main__.py":
        pytest.skip("an entry, not a module to import from")
    tree = parse(path)
    listed = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        and node.value is not None
        and ast.unparse(getattr(node, "target", None) or node.targets[0]) == "__all__"
    ]
    assert listed, "no __all__"
    names = list(listed[0])
    assert names == sorted(names, key=order_of_names), names
    bound = {node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    public = {name for name in bound if not name.startswith("_")}
    assert public <= set(names), f"not in __all__: {sorted(public - set(names))}"


def order_of_names(name: str) -> tuple[int, str]:
    """Constants, then classes, then functions: the order that ruff keeps."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_stand_at_the_top(path: Path) -> None:
    if name_of(path).startswith(LATE_IMPORTS):
        pytest.skip("a room with a heavy dependency of its own")
    for function in functions(parse(path)):
        late = [n for n in ast.walk(function) if isinstance(n, ast.Import | ast.ImportFrom)]
        assert not late, f"{function.name} imports inside"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_file_with_shape_letters_has_a_legend(path: Path) -> None:
    tree = parse(path)
    letters = {
        node.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and re.fullmatch(r"[a-z][a-z0-9_]*_[A-Z]{1,4}", node.id)
    }
    if letters:
        assert "Shape letters" in (ast.get_docstring(tree) or ""), sorted(letters)[:5]


def test_no_class_is_deeper_than_one_below_a_root() -> None:
    roots = {"Module", "Exception", "Protocol", "NamedTuple", "object", "type"}
    parents: dict[str, list[str]] = {}
    for path in MODULES:
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.ClassDef):
                parents[node.name] = [ast.unparse(b).split(".")[-1] for b in node.bases]

    def depth(name: str) -> int:
        if name in roots or name not in parents:
            return 0
        return max((depth(p) + (p in parents) for p in parents[name]), default=0)

    deep = {name: depth(name) for name in parents if depth(name) > 1}
    exceptions = {name for name in deep if name.endswith(("Error", "Problem", "Run"))}
    assert not set(deep) - exceptions, deep
    assert all(deep[name] <= 2 for name in exceptions)


def test_every_module_can_be_imported_on_a_machine_without_a_gpu() -> None:
    for module in pkgutil.walk_packages(paceline.__path__, "paceline."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def test_help_loads_nothing_heavy() -> None:
    code = "import sys, paceline.cli; print(sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert set(ast.literal_eval(loaded)) - sys.stdlib_module_names <= LIGHT_MODULES


def test_no_path_of_a_machine_is_in_the_source() -> None:
    for path in MODULES:
        assert not re.search(r"/(home|root|work|Users)/", path.read_text()), path
