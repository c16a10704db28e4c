"""The table of README.md, which `make bench-tables` writes between its markers from the file of bench/results that they name."""

import json
import re
import sys
from pathlib import Path

import results

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from pages import replaced, table

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "README.md"
BEGIN = re.compile(r"<!-- make bench-tables writes from here, of (bench/results/\S+\.json) -->")
END = "<!-- make bench-tables: to here -->"
META = "mlp_meta_loss"
NAMES = {"learners": "MAML"}
ROWS = {  # workload: what the table calls it
    "proto_loss fwd+bwd euclidean T1 Q75 N5 D64": "1 task, 75 queries, 5 ways, D = 64",
    "proto_loss fwd+bwd euclidean T1 Q75 N5 D1600": "the same, D = 1600",
    "proto_loss fwd+bwd euclidean T32 Q75 N5 D640": "32 tasks, D = 640",
    "proto_loss fwd+bwd euclidean T32 Q75 N20 D64": "32 tasks, 20 ways, D = 64",
    "proto_loss fwd+bwd euclidean T1 Q300 N60 D64": "1 task, 300 queries, 60 ways, D = 64",
    "proto_loss fwd+bwd euclidean T1 Q4096 N1000 D512": "1 task, 4096 queries, 1000 ways, D = 512",
    "proto_loss without grad euclidean T1 Q75 N5 D64": "1 task, 75 queries, 5 ways, D = 64, no gradient",
    "matching_log_probs fwd+bwd T32 Q75 S25 N5 D64": "32 tasks, 75 queries, 25 supports, D = 64",
    f"{META} W1 sinusoid MAML K1, 25 tasks, 10 + 10 examples": "sinusoid MAML, K = 1",
    f"{META} W1 sinusoid MAML K5, 25 tasks, 10 + 10 examples": "sinusoid MAML, K = 5",
    f"{META} W2 sinusoid Meta-SGD K5, 25 tasks, 10 + 10 examples": "sinusoid Meta-SGD, K = 5",
    f"{META} W3 linear head D64 K5, 32 tasks, 25 + 75 examples": "linear head, 32 tasks, 25 + 75 examples, K = 5, D = 64",
    f"{META} W3 linear head D1600 K5, 32 tasks, 25 + 75 examples": "the same, D = 1600",
    "MAML Conv4-32 28x28x1, 8 tasks K1, 5-way 1-shot, 15 queries each": "Conv4-32, 8 tasks, 5-way 1-shot, K = 1",
    "MAML Conv4-32 28x28x1, 8 tasks K5, 5-way 1-shot, 15 queries each": "the same, K = 5",
    "mlp_hvp W6 softmax regression 32 x (25, 640, 5)": "(640, 5), 25 examples, 32 tasks",
    "mlp_hvp W6 MLP 784-64-64-10 n100, 32 tasks": "(784, 64, 64, 10), 100 examples, 32 tasks",
    "sgd_step fwd+bwd Conv4-64 x 32 tasks, scalar rate": "Conv4-64, 32 tasks, one rate",
    "sgd_step fwd+bwd Conv4-64 x 32 tasks, per-parameter rate": "the same, a rate for each parameter",
    "prototypes fwd+bwd T1 S25 N5 D64": "25 supports, 5 ways, D = 64",
}


def lines(found, name):
    """What stands between the markers. A workload that was not raced is an error."""
    most = max(row["threads"] for row in found["rows"])
    rows = {row["workload"]: row for row in found["rows"] if row["threads"] == most}
    if missing := [workload for workload in ROWS if workload not in rows]:
        raise ValueError(f"README.md: {name} must have every workload of the table, got none of {missing}")
    facts, threads = found["machine"], results.threads(rows[next(iter(ROWS))])
    compiled = any(name.startswith("compiled") for workload in ROWS for name in rows[workload]["contenders"])
    about = (
        f"{facts['device']} ({facts['instructions']}), torch {facts['torch']}, {facts['date']}, float32, {threads}"
        f"{'' if compiled else ', without torch.compile'}; "
        f"all ways, their spread, first calls, operations and memory: `{name.removesuffix('.json')}.md`"
    )
    heads = ("op", "size", "fastmeta", "over the reference", "over the fastest other way")
    return ["", about, "", *table(heads, [_cells(rows[workload], words) for workload, words in ROWS.items()])]


def _cells(row, words):
    ours, others = results.ours_of(row)["seconds"], results.others_of(row)
    name, times = results.speedup(row)
    over_reference = f"{others['reference']['seconds'] / ours:.1f}x" if "reference" in others else "too large to run"
    return f"`{NAMES.get(row['op'], row['op'])}`", words, results.duration(ours), over_reference, f"{times:.1f}x ({name})"


def page(text):
    """README.md anew."""
    begin = BEGIN.search(text)
    found = json.loads((ROOT / begin[1]).read_text())
    return replaced(text, lines(found, begin[1]), begin[0], END)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
