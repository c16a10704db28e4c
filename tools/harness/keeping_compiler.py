"""g++ that keeps the objects it makes in build/emulation: `keeping_compiler.py STATE words...`, STATE telling what the sources are."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

CACHE = Path(__file__).resolve().parents[2] / "build/emulation"


def main(state: str, *words: str) -> int:
    if "-c" not in words:
        return subprocess.call(["g++", *words])
    made = Path(words[words.index("-o") + 1])
    key = repr((state, words, Path("include/build.h").read_bytes()))
    kept = CACHE / f"{hashlib.sha256(key.encode()).hexdigest()[:20]}.o"
    if kept.exists():
        shutil.copy(kept, made)
        made.with_name(f"{made.name}.d").write_text(f"{made}:\n")
        return 0
    if not (code := subprocess.call(["g++", *words])):
        CACHE.mkdir(parents=True, exist_ok=True)
        unfinished = kept.with_suffix(f".{os.getpid()}.o")
        shutil.copy(made, unfinished)
        unfinished.rename(kept)  # whole, wherever this process ends
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
