"""Tables and the picture of README.md and docs/, which `make bench-tables` makes of the file of bench/results that they name."""

import json
import re

from harness.places import ROOT
from measure import results
from pages import highlights, plots
from pages.tables import replaced, table

README = ROOT / "README.md"
OPS = {  # page of docs/: the ops whose rows it has
    "proto_loss.md": ("prototypes", "proto_log_softmax", "proto_loss", "matching_log_probs"),
    "maml.md": ("mlp_meta_loss", "mlp_adapt", "mlp_grad", "mlp_hvp", "sgd_step", "learners"),
}
BEGIN = re.compile(r"<!-- make bench-tables writes from here, of (bench/results/\S+\.json) -->")
END = "<!-- make bench-tables: to here -->"
PERFORMANCE = ROOT / "docs/performance.md"
INTEGRATIONS = ROOT / "docs/integrations.md"
LIBRARIES = ("learn2learn", "higher", "torchopt", "easyfsl")
TRAINING = {"eager": "eager PyTorch", "compiled": "torch.compile", "jax": "JAX"}  # ways of bench_training.py
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


def readme_lines(found, name):
    """The first highlights. A workload that was not raced is an error."""
    rows = highlights.rows_of(found, highlights.FIRST)
    heads = ("workload", "fastmeta", "fastest alternative", "speed-up")
    cells = [_first_cells(row, words) for row, words in zip(rows, highlights.FIRST.values(), strict=True)]
    facts = found["machine"]
    about = f"{facts['device']} ({facts['instructions']}), {results.threads(rows[0])}, float32, torch {facts['torch']}, {facts['date']}:"
    return ["", about, "", *table(heads, cells)]


def performance_lines(found, name):
    """The chosen rows of every op. A workload that was not raced is an error."""
    rows = highlights.rows_of(found, ROWS)
    about = f"{results.threads(rows[0])}, {_about(found, name)}:"
    heads = ("op", "size", "fastmeta", "speed-up over the reference", "speed-up over the fastest alternative")
    cells = [_cells(row, words) for row, words in zip(rows, ROWS.values(), strict=True)]
    return ["", about, "", *table(heads, cells), *training_lines(found)]


def training_lines(found):
    """Each meta-iteration of bench_training.py on the most threads, by every way; nothing where none was raced."""
    rows = [row for row in found["rows"] if row["op"] == "training"]
    most = max((row["threads"] for row in rows), default=0)
    heads = ("whole meta-iteration", "fastmeta", *TRAINING.values())
    cells = [
        [row["workload"], results.duration(results.ours_of(row)["seconds"]), *(_of_way(row, way) for way in TRAINING)]
        for row in rows
        if row["threads"] == most
    ]
    about = f"Draw new tasks, the gradient of their loss, a step of Adam; {most} threads (bench/bench_training.py):"
    return [about, "", *table(heads, cells)] if rows else []


def _of_way(row, way):
    """Its time and the speed-up over it."""
    if not (cell := row["contenders"].get(way)):
        return "-"
    return f"{results.duration(cell['seconds'])} ({cell['seconds'] / results.ours_of(row)['seconds']:.1f}x)"


def op_lines(found, name, ops):
    """Every row of these ops: ours and the fastest alternative, on each number of threads."""
    counts = sorted({row["threads"] for row in found["rows"]})
    rows = {}
    for row in found["rows"]:
        if row["op"] in ops and results.speedup(row):
            rows.setdefault((ops.index(row["op"]), row["workload"]), {})[row["threads"]] = row
    heads = [
        "workload",
        *(f"{n} thread{'s' if n > 1 else ''}: {what}" for n in counts for what in ("fastmeta", "fastest alternative")),
    ]
    cells = [
        [workload, *(cell for n in counts for cell in _against(of.get(n)))]
        for (_, workload), of in sorted(rows.items())
    ]
    return ["", _about(found, name) + ". What compiles first is raced on 2 threads only:", "", *table(heads, cells)]


def integration_lines(found, name):
    """What each library's programs gain by the two ways and batched: the ranges, then program by program with the library's own time."""
    programs = list(_programs(found))
    most = max(row["threads"] for row in found["rows"])
    kinds = {}
    for library, workload, _, times in programs:
        kinds.setdefault((library, "head of ProtoNet" if "head" in workload else "inner loop"), []).append(times)
    ranges = [
        [library, kind, *map(_range, zip(*all_times, strict=True))] for (library, kind), all_times in kinds.items()
    ]
    cells = [[workload, results.duration(own), *map(_times, times)] for _, workload, own, times in programs]
    ways = ("import alone", "`accelerate`", "two more lines")
    return [
        "", f"{most} threads, {_about(found, name)}:", "", *table(("library", "program", *ways), ranges),
        "Program by program:", "", *table(("program", "the library", *ways), cells),
    ]  # fmt: skip


def _programs(found):
    """(library, program, its seconds, how many times faster it is by the import, accelerated and batched)."""
    most = max(row["threads"] for row in found["rows"])
    for row in found["rows"]:
        library = next((way for way in LIBRARIES if way in row["contenders"]), None)
        if row["op"] == "integrations" and row["threads"] == most and library:
            seconds = {way: cell["seconds"] for way, cell in row["contenders"].items()}
            ways = [seconds.get(way) for way in ("ext", "accelerated", row["ours"][-1])]
            times = [seconds[library] / ours if ours else None for ours in ways]
            yield library, re.sub(r"^W\d+ ", "", row["workload"]), seconds[library], times


def _times(factor):
    return f"{factor:.2f}x" if factor else "-"


def _range(factors):
    """ "1.0 to 1.1x", or "5.2x" where both ends are the same."""
    known = [factor for factor in factors if factor]
    ends = (
        dict.fromkeys(f"{end:.0f}" if end >= 10 else f"{end:.1f}" for end in (min(known), max(known))) if known else "-"
    )
    return " to ".join(ends) + ("x" if known else "")


def _about(found, name):
    facts = found["machine"]
    compiled = any(way.startswith("compiled") for row in found["rows"] for way in row["contenders"])
    jax = f", jax {facts['jax']}" if "jax" in facts else ""
    return (
        f"{facts['device']} ({facts['instructions']}), torch {facts['torch']}{jax}, {facts['date']}, float32"
        f"{'' if compiled else ', without torch.compile'}; "
        f"every alternative, with spread, first call, operations and memory: `{name.removesuffix('.json')}.md`"
    )


def _against(row):
    if row is None:
        return "-", "-"
    name, times = results.speedup(row)
    share = f" ({row['floor'] / results.ours_of(row)['seconds']:.0%} of the roofline)" if row["floor"] else ""
    return results.duration(results.ours_of(row)["seconds"]) + share, f"{times:.2f}x ({name})"


def _first_cells(row, words):
    name, times = results.speedup(row)
    ours, other = (results.duration(cell["seconds"]) for cell in (results.ours_of(row), row["contenders"][name]))
    known = {"compiled": "torch.compile", "jax": "JAX"} | {library: library for library in LIBRARIES}
    whose = known.get(name.partition(" ")[0], "eager PyTorch")
    return words, ours, f"{other} ({whose})", f"{times:.1f}x"


def _cells(row, words):
    ours, others = results.ours_of(row)["seconds"], results.others_of(row)
    name, times = results.speedup(row)
    over_reference = f"{others['reference']['seconds'] / ours:.1f}x" if "reference" in others else "too large to run"
    return (
        f"`{NAMES.get(row['op'], row['op'])}`",
        words,
        results.duration(ours),
        over_reference,
        f"{times:.1f}x ({name})",
    )


def page(path):
    """The page anew."""
    text = path.read_text()
    begin = BEGIN.search(text)
    lines_of = {README: readme_lines, PERFORMANCE: performance_lines, INTEGRATIONS: integration_lines}
    found = measured(text)
    lines = lines_of[path](found, begin[1]) if path in lines_of else op_lines(found, begin[1], OPS[path.name])
    return replaced(text, lines, begin[0], END)


def measured(text):
    """The results that a page names."""
    return json.loads((ROOT / BEGIN.search(text)[1]).read_text())


def pages():
    return [README, PERFORMANCE, INTEGRATIONS, *(ROOT / "docs" / name for name in OPS)]


if __name__ == "__main__":
    for path in pages():
        path.write_text(page(path))
    source = ROOT / BEGIN.search(README.read_text())[1]
    plots.draw(measured(README.read_text()), source.with_suffix(""))
