"""One op, one name, one file in each layer; no module imports one that imports it."""

import ast
import graphlib
import inspect
import re

import pytest

import fastmeta
from harness.cases import BACKENDS
from harness.places import ROOT

pytestmark = pytest.mark.cpu
FAMILY = {p.stem: family for family in ("distance", "inner") for p in (ROOT / "fastmeta" / family).glob("[a-z]*.py")}
OPS = sorted(FAMILY)


def test_every_op_is_public_and_has_a_case():
    functions = {name for name in fastmeta.__all__ if inspect.isfunction(getattr(fastmeta, name))}
    assert (
        set(OPS)
        == set(BACKENDS)
        == functions - {"backend", "evaluate", "fit", "graphed", "unroll", "use_batch_statistics", "value_and_grad"}
    )


@pytest.mark.parametrize("op", OPS)
def test_every_op_has_a_reference_a_test_and_a_bench(op):
    for path in (f"fastmeta/reference/{op}.py", f"tests/{FAMILY[op]}/test_{op}.py", f"bench/bench_{op}.py"):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("folder", ["kernels", "csrc/distance", "csrc/inner"])
def test_every_kernel_has_an_op(folder):
    """In its op's family; `network_<function>` is the front end of that function of all networks. What is no op's is a part of
    several: a header of its name says what for."""
    files = [p for suffix in ("py", "cpp", "cu") for p in (ROOT / folder).rglob(f"[a-z]*.{suffix}")]
    parts = [p for p in files if p.suffix == ".py" or not any(p.with_suffix(h).exists() for h in (".h", ".cuh"))]
    family = folder.removeprefix("csrc/")
    ours = {op for op in OPS if family in ("kernels", FAMILY[op])}
    assert {p.stem for p in parts} <= ours | {re.sub("^(mlp|conv)_", "network_", op) for op in ours}


@pytest.mark.parametrize("op", OPS)
def test_every_public_name_is_documented(op):
    text = inspect.getdoc(getattr(fastmeta, op))
    assert text and "Source" in text and "Error" in text, op


def imported(path):
    """The modules of fastmeta that one of them imports, in its functions too, but for what only annotations name."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    tree = ast.parse(path.read_text())
    typing = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    unused = {id(node) for block in typing for node in ast.walk(block)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level and id(node) not in unused:
            base = ROOT.joinpath(*package[: len(package) + 1 - node.level], *(node.module or "").split("."))
            for found in (base, *(base / name.name for name in node.names)):
                yield from (p for p in (found.with_suffix(".py"), found / "__init__.py") if p.exists() and p != path)


def test_no_module_imports_one_that_imports_it():
    graph = {path: set(imported(path)) for path in (ROOT / "fastmeta").rglob("*.py")}
    graph = {
        path: {p for p in found if p.name != "__init__.py" or p.parent not in path.parents}
        for path, found in graph.items()
    }
    graphlib.TopologicalSorter(graph).prepare()
