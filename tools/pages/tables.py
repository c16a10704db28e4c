"""Tables that commands write into pages of docs/, between markers."""

from collections.abc import Iterable


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    lines = [heads, ["---"] * len(list(heads)), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines] + [""]


def replaced(text: str, lines: list[str], begin: str, end: str) -> str:
    """`text` with these lines between its markers."""
    before, rest = text.split(begin)
    _, after = rest.split(end)
    return before + begin + "\n" + "\n".join(lines) + end + after
