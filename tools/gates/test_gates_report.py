"""`make gpu-report` touches nothing of the page but what lies between its markers."""

from harness import forks
from harness.places import ROOT

CODE = """
from gates import gates_report as g
text = g.PAGE.read_text()
new = g.replaced(text, g.table(["kernel", "registers"], [["a", g.cell([1, 1])], ["b", g.cell([1, 2])]]), g.BEGIN, g.END)
before, after = text.split(g.BEGIN)[0], text.split(g.END)[1]
rows = "| kernel | registers |\\n| --- | --- |\\n| a | 1 |\\n| b | 1 / 2 |\\n"
assert new == before + g.BEGIN + "\\n" + rows + g.END + after, new
assert g.replaced(new, ["x", ""], g.BEGIN, g.END) == g.replaced(text, ["x", ""], g.BEGIN, g.END)
"""


def test_only_the_tables_change():
    done = forks.run("-c", CODE, cwd=ROOT / "tests")
    assert done.returncode == 0, done.stderr
