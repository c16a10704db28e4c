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
PUBLIC = {
    name: getattr(module, name) for module in (fastmeta, fastmeta.data, fastmeta.heads) for name in module.__all__
}
TEXTS = {str(page.relative_to(ROOT)): page.read_text() for page in PAGES}
TEXTS |= {name: inspect.getdoc(thing) or "" for name, thing in PUBLIC.items() if not isinstance(thing, ModuleType)}
NOT_RUN = re.compile(r"# not run: (\S.*)\n")
OPS = sorted(p.stem for family in ("distance", "inner") for p in (ROOT / "fastmeta" / family).glob("[a-z]*.py"))


def python_blocks(text):
    return re.findall(r"^```python\n(.*?)^```$", text, re.S | re.M)


WITH_BLOCKS = [name for name, text in TEXTS.items() if python_blocks(text)]


@pytest.mark.cpu
@pytest.mark.parametrize("name", WITH_BLOCKS)
def test_examples_run(name):
    names, left_out = {}, []
    for block in python_blocks(TEXTS[name]):
        code = compile(block, name, "exec")
        if reason := NOT_RUN.match(block):
            left_out.append(reason[1])
        else:
            exec(code, names)
    if left_out:
        pytest.skip(f"blocks not run: {', '.join(left_out)}")


def test_every_block_is_found():
    assert all(len(python_blocks(text)) == text.count("```python\n") for text in TEXTS.values())


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


def test_the_readme_is_short():
    assert len(TEXTS["README.md"].splitlines()) <= 120


@pytest.mark.parametrize("op", OPS)
def test_every_op_has_an_example_that_calls_it(op):
    calls = [
        node for block in python_blocks(TEXTS[op]) for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Call)
    ]
    assert f"fastmeta.{op}" in {ast.unparse(call.func) for call in calls}
