"""Every example runs: the Python blocks of README.md, docs/*.md and of the docstrings. A page's blocks share their names, in order; a
block whose first line is `# not run: why` is skipped with that reason."""

import ast
import inspect
import re
from types import ModuleType

import pytest

import fastmeta
import fastmeta.data
from harness.places import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PUBLIC = {name: getattr(module, name) for module in (fastmeta, fastmeta.data) for name in module.__all__}
TEXTS = {str(page.relative_to(ROOT)): page.read_text() for page in PAGES}
TEXTS |= {name: inspect.getdoc(thing) or "" for name, thing in PUBLIC.items() if not isinstance(thing, ModuleType)}
NOT_RUN = re.compile(r"# not run: (\S.*)\n")
OPS = sorted(p.stem for family in ("distance", "inner") for p in (ROOT / "fastmeta" / family).glob("[a-z]*.py"))


def python_blocks(text):
    return re.findall(r"^```python\n(.*?)^```$", text, re.S | re.M)


def run(name, text):
    """Runs a text's blocks; the number of those that ran, and the reasons of the others."""
    names, count, reasons = {}, 0, []
    for block in python_blocks(text):
        if left_out := NOT_RUN.match(block):
            compile(block, name, "exec")
            reasons.append(left_out[1])
            continue
        exec(compile(block, name, "exec"), names)
        count += 1
    return count, reasons


WITH_BLOCKS = [name for name, text in TEXTS.items() if python_blocks(text)]
NOT_RUN_BLOCKS = [(name, block) for name in WITH_BLOCKS for block in python_blocks(TEXTS[name]) if NOT_RUN.match(block)]


@pytest.mark.cpu
@pytest.mark.parametrize("name", WITH_BLOCKS)
def test_examples_run(name):
    count, reasons = run(name, TEXTS[name])
    assert count + len(reasons) == TEXTS[name].count("```python\n")


@pytest.mark.parametrize("name, block", NOT_RUN_BLOCKS)
def test_example_is_not_run(name, block):
    pytest.skip(f"{name}: {NOT_RUN.match(block)[1]}")


@pytest.mark.cpu
def test_a_broken_example_fails():
    with pytest.raises(ValueError, match="prototypes: num_classes"):
        run("planted", "```python\nimport torch, fastmeta\n```\n```python\n"
            "fastmeta.prototypes(torch.ones(2, 3), torch.zeros(2, dtype=torch.int64), 0)\n```\n")  # fmt: skip
    with pytest.raises(SyntaxError):
        run("planted", "```python\n# not run: no GPU\nx = = 1\n```\n")


def code_lines(text):
    """The lines of a page's or a docstring's code: fenced blocks, and what is indented by four spaces."""
    fence = re.compile(r"^```.*?\n(.*?)^```$", re.S | re.M)
    indented = re.findall(r"(?:^|\n\n)((?: {4}.*\n)+)", fence.sub("", text))
    return [line for block in fence.findall(text) for line in block.splitlines()] + [
        line[4:] for block in indented for line in block.splitlines()
    ]


@pytest.mark.parametrize("name", TEXTS)
def test_code_fits_the_column_of_the_site(name):
    assert [line for line in code_lines(TEXTS[name]) if len(line) > 76] == []


def test_code_lines_are_found():
    page = "text\n\n    indented\n    twice\n\n```python\nfenced\n```\n- a list\n    of its own\n"
    assert code_lines(page) == ["fenced", "indented", "twice"]


def test_the_readme_is_short():
    assert len(TEXTS["README.md"].splitlines()) <= 120


@pytest.mark.parametrize("op", OPS)
def test_every_op_has_an_example_that_calls_it(op):
    calls = [
        node for block in python_blocks(TEXTS[op]) for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Call)
    ]
    assert f"fastmeta.{op}" in {ast.unparse(call.func) for call in calls}
