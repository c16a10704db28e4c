"""Files of results: a JSON list with a row on each line, of which no two agree in all of its key's values."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import persist

KEY = ("learner", "network", "ways", "shots", "seed", "frequency", "budget", "trained")


def load(path: Path) -> list[dict[str, Any]]:
    """ValueError for a file that is no such list."""
    if not path.exists():
        return []
    try:
        rows = json.loads(path.read_bytes())
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise ValueError("it has other values")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} must be a JSON list of rows, got another file: {error}") from error
    return rows


def of(rows: Iterable[dict[str, Any]], **wanted: Any) -> list[dict[str, Any]]:
    """Those that have these values."""
    return [row for row in rows if all(row.get(name) == value for name, value in wanted.items())]


def add(path: Path, *rows: dict[str, Any], key: Sequence[str] = KEY) -> None:
    """Put rows into the file, each for the one with its key if there is one; several processes may do so."""
    with persist.claim(path.parent, wait=True):
        keys = [[row.get(name) for name in key] for row in rows]
        kept = [other for other in load(path) if [other.get(name) for name in key] not in keys]
        lines = ",\n".join(json.dumps(other) for other in (*kept, *rows))
        persist.write(path, lambda file: file.write(f"[\n{lines}\n]\n".encode()))
