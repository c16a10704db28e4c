"""A library's own tests, from a checkout of it, on the library and with its imports changed to fastmeta.integrations:

    PYTHONPATH=tools python -m harness.peer_suites higher CHECKOUT [FILE ...]

Counts both, names the tests whose outcomes differ, and fails where one passes on the library alone. FILE: parts of names.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

FOLDERS = {"learn2learn": "tests", "higher": "tests", "torchopt": "tests", "easyfsl": "easyfsl/tests"}
PLUGINS = {"easyfsl": ["pytest_cases.plugin", "pytest_mock"]}
SEEDED = "import torch\n\ndef pytest_runtest_setup():\n    torch.manual_seed(0)\n"
HERE = "fastmeta.integrations"


def swapped(text, library):
    """The lines of a program that import `library`, changed; names in strings, which mocks take, too."""
    text = re.sub(rf"^(\s*)import {library}( as \w+)?$", rf"\1from {HERE} import {library}\2", text, flags=re.M)
    text = re.sub(rf"^(\s*)(import|from) ({library}\.[\w.]+|{library} import)", rf"\1\2 {HERE}.\3", text, flags=re.M)
    return re.sub(rf'(["\']){library}\.(?=\w+\.)', rf"\1{HERE}.{library}.", text)


def outcomes(library, checkout, parts, swap):
    """{test: passed, failed, error or skipped}."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, FOLDERS[library])
        shutil.copytree(Path(checkout, FOLDERS[library]), folder)
        for path in folder.rglob("*.py") if swap else ():
            path.write_text(swapped(path.read_text(), library))
        files = [p for p in sorted(folder.rglob("*.py")) if p.stem.startswith("test_") or p.stem.endswith("_test")]
        files = [str(p) for p in files if not parts or any(part in str(p.relative_to(place)) for part in parts)]
        options = [f"-p{name}" for name in (*PLUGINS.get(library, ()), "seeded", "no:cacheprovider")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join((place, os.environ.get("PYTHONPATH", "")))}
        pytest = [sys.executable, "-P", "-m", "pytest", "-q", "-Wignore", "--junitxml=found.xml", "--tb=short"]
        Path(place, "seeded.py").write_text(SEEDED)
        command = [*pytest, *options, *files]
        run = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
        if not Path(place, "found.xml").exists():
            raise SystemExit(run.stdout + run.stderr)
        found = {}
        for case in ET.parse(Path(place, "found.xml")).iter("testcase"):
            said = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
            words = "" if said is None else f": {(said.get('message') or '').splitlines()[:1]}"
            test = re.sub(" at 0x[0-9a-f]+", "", f"{case.get('classname')}.{case.get('name')}")
            found[test] = ("passed" if said is None else said.tag, words)
        return found


def main(library, checkout, *parts):
    by_library, by_swap = (outcomes(library, checkout, parts, swap) for swap in (False, True))
    for name, found in (("the library", by_library), ("the swap", by_swap)):
        print(f"{library}'s tests on {name}:", dict(Counter(outcome for outcome, _ in found.values())))
    lost, none = 0, ("not there", "")
    for test in sorted({*by_library, *by_swap}):
        (before, _), (after, words) = by_library.get(test, none), by_swap.get(test, none)
        if before != after:
            print(test, before, "->", after + words)
            lost += before == "passed"
    return f"{lost} tests pass on the library alone" if lost else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
