"""`make gpu-report` touches nothing of the page but what lies between its markers."""

from pages import gpu_page
from pages.tables import replaced, table


def test_only_the_tables_change():
    text, (begin, end) = gpu_page.PAGE.read_text(), (gpu_page.BEGIN, gpu_page.END)
    lines = table(["kernel", "registers"], [["a", gpu_page.cell([1, 1])], ["b", gpu_page.cell([1, 2])]])
    rows = "| kernel | registers |\n| --- | --- |\n| a | 1 |\n| b | 1 / 2 |\n"
    assert replaced(text, lines, begin, end) == text.split(begin)[0] + f"{begin}\n{rows}{end}" + text.split(end)[1]
