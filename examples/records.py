"""Files of results: a JSON list with a row on each line, of which no two agree in all of KEY."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import persist

KEY = ("learner", "network", "ways", "shots", "seed", "budget")


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


def add(path: Path, row: dict[str, Any]) -> None:
    """Put a row into the file, for the one with its key if there is one."""
    kept = [other for other in load(path) if any(other.get(name) != row.get(name) for name in KEY)]
    lines = ",\n".join(json.dumps(other) for other in (*kept, row))
    persist.write(path, lambda file: file.write(f"[\n{lines}\n]\n".encode()))
