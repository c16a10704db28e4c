"""Where the parts of the repository lie."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CSRC, DOCS, BENCH, EXAMPLES = (ROOT / name for name in ("csrc", "docs", "bench", "examples"))
OMNIGLOT = ROOT.parent / "shared" / "data" / "omniglot"  # real drawings, which no commit holds
WITH_TOOLS = os.environ | {
    "PYTHONPATH": os.pathsep.join(str(ROOT / name) for name in ("tools", "examples", "csrc", "bench"))
}
