"""Imports point one way: sandboxes <- envs <- agents <- mopd."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ("sandboxes", "envs", "agents", "mopd")
# Composition roots: they stand where users call them, build from every layer, and are imported
# by nobody.
ROOTS = {"envs.run", "envs.evaluate", "envs.play", "envs.replay", "agents.pocket.train"}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {module_name(path): path for layer in LAYERS for path in (ROOT / layer).rglob("*.py")}


def imports(module: str) -> Iterator[tuple[int, str]]:
    """Every module that the file names in an import, at any depth, with the line."""
    path = FILES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*(above if node.level else []), *([node.module] * bool(node.module))])
            for alias in node.names:
                name = f"{base}.{alias.name}"
                yield node.lineno, name if name in FILES else base


@pytest.mark.parametrize("module", sorted(FILES))
def test_a_module_imports_only_its_layer_and_what_stands_left_of_it(module: str) -> None:
    layer = LAYERS.index(module.split(".")[0])
    to_the_right = LAYERS[layer + 1 :] if module not in ROOTS else ()
    for line, name in imports(module):
        assert name.split(".")[0] not in to_the_right, f"{module}:{line} imports {name}"


@pytest.mark.parametrize("module", sorted(FILES))
def test_nothing_imports_a_composition_root(module: str) -> None:
    for line, name in imports(module):
        assert name not in ROOTS, f"{module}:{line} imports {name}"


@pytest.mark.parametrize("module", sorted(FILES))
def test_a_module_says_what_it_is(module: str) -> None:
    text = FILES[module].read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)), f"{FILES[module]} has no docstring"


def test_the_walk_sees_relative_and_nested_imports(tmp_path: Path) -> None:
    file = tmp_path / "inner.py"
    file.write_text("from .. import tasks\nfrom . import number\ndef f():\n    import mopd.peers\n")
    FILES["envs.grading.inner"] = file
    try:
        seen = list(imports("envs.grading.inner"))
    finally:
        del FILES["envs.grading.inner"]
    assert seen == [(1, "envs.tasks"), (2, "envs.grading.number"), (4, "mopd.peers")]


def test_importing_envs_loads_neither_torch_nor_langchain() -> None:
    code = "import sys, envs; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert "gymnasium" in loaded
    heavy = {"torch", "transformers", "langchain_core", "sympy", "math_verify"}
    assert not heavy.intersection(loaded)
