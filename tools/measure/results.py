"""What the races found, as plain data that is written to <machine>.json: {"machine", "rows", "tables", "left out"}.

A row is one workload on so many threads:
    op, mode, workload, threads   words and a number; together they name the row
    sizes        {letter: size} where the bench says so, for curves
    floor        s, the least by the machine's measured rates; null where none is counted
    ours         names of the ways through fastmeta among the contenders, first the one that the others are held against
    contenders   {name: {"seconds": median, "quartiles": [s, s], "first call": s, "dispatched": ops, "memory": bytes}}
    not timed    {name: reason}
A table is {title: {workload: {way: number}}}. Ratios alone are compared between runs: the machines are shared.
"""

import json
import statistics

TOLERANCE = 1.25  # times worse that a ratio may get before it is a regression: medians vary by a fifth from run to run


def measured(seconds, **others):
    """A contender's cell from the seconds of its turns."""
    quartiles = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else [seconds[0]] * 3
    return {"seconds": statistics.median(seconds), "quartiles": [quartiles[0], quartiles[2]], **others}


def name_of(row):
    return row["op"], row["mode"], row["workload"], row["threads"]


def ours_of(row):
    return row["contenders"][row["ours"][0]]


def others_of(row):
    """{name: cell} of the alternatives, the fastest first."""
    others = {name: cell for name, cell in row["contenders"].items() if name not in row["ours"]}
    return dict(sorted(others.items(), key=lambda of: of[1]["seconds"]))


def speedup(row):
    """(the fastest alternative, how many times longer it takes than ours), or None where nothing else was timed."""
    for name, cell in others_of(row).items():
        return name, cell["seconds"] / ours_of(row)["seconds"]
    return None


def regressions(then, now, tolerance=TOLERANCE):
    """A line for each row in both runs, ours over the fastest alternative that both timed, and those lines that are worse: the
    ratio of medians is by more than the tolerance, and the ratios that the quartiles allow do not meet."""
    before, lines, worse = {name_of(row): row for row in then["rows"]}, [], []
    for row in now["rows"]:
        old = before.get(name_of(row))
        shared = old and [name for name in others_of(old) if name in others_of(row)]
        if not shared:
            continue
        (was, _, was_high), (is_, is_low, _) = _ratio(old, shared), _ratio(row, shared)
        line = f"{row['workload']}, {threads(row)}: ours / fastest other {was:.3f} then, {is_:.3f} now"
        lines.append(line)
        if is_ > tolerance * was and is_low > was_high:
            worse.append(line)
    return lines, worse


def _ratio(row, names):
    """Ours over the fastest of `names`: of the medians, and the least and the greatest that the quartiles allow."""
    ours, other = ours_of(row), min((row["contenders"][name] for name in names), key=lambda cell: cell["seconds"])
    (low, high), (other_low, other_high) = ours["quartiles"], other["quartiles"]
    return ours["seconds"] / other["seconds"], low / other_high, high / other_low


def threads(row):
    return f"{row['threads']} thread{'s' if row['threads'] > 1 else ''}"


def duration(seconds):
    return f"{1e3 * seconds:.3g} ms" if seconds >= 1e-3 else f"{1e6 * seconds:.3g} us"


def write(path, text):
    """As a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(path.suffix + ".part")
    unfinished.write_text(text)
    unfinished.replace(path)


def as_json(results):
    return json.dumps(results, indent=1) + "\n"


def line(row, way):
    """A line of the terminal's table: one of our ways against the others."""
    cell, others = row["contenders"][way], others_of(row)
    ratios = [f"{name} {other['seconds'] / cell['seconds']:.2f}x" for name, other in others.items()]
    of_floor = f"{row['floor'] / cell['seconds']:.0%} of the roofline" if row["floor"] else ""
    extra = "".join(f"   {words}" for words in _extras(cell))
    found = "   fastest alternative: " + "   ".join(ratios) if ratios else ""
    return f"{threads(row):<9} {way:<13} {_us(cell):>24} {of_floor:>20}{extra}{found}"


def _us(cell):
    low, high = cell["quartiles"]
    return f"{cell['seconds'] * 1e6:.1f} us ({low * 1e6:.1f}-{high * 1e6:.1f})"


def _extras(cell):
    if "first call" in cell:
        yield f"first {1e3 * cell['first call']:.1f} ms"
    if cell.get("dispatched") is not None:
        yield f"{cell['dispatched']} ops"
    if cell.get("memory") is not None:
        yield f"{cell['memory'] / 2**20:.1f} MiB"


def markdown(results):
    lines = [f"# fastmeta on {results['machine']['device']}", ""]
    lines += [f"- {name}: {fact}" for name, fact in results["machine"].items() if name != "ceilings"]
    for count, (bandwidth, rate) in results["machine"]["ceilings"].items():
        rates = f"a copy {bandwidth / 1e9:.1f} GB/s, the fastest float32 product {rate / 1e9:.0f} GFLOP/s"
        lines.append(f"- measured on {count}: {rates}")
    lines += [
        "",
        "Medians of interleaved rounds and their quartiles. Times ours: how many times longer than fastmeta's first way. First call:",
        "with what is compiled in it. Ops: what PyTorch dispatches in a call; of what is compiled, what is left of it beside its own",
        "kernels. Memory: the peak on top of the inputs, in a process of its own on one thread, where it was measured. The roofline: the",
        "bytes and operations that no way can do without, at the rates above; the product is torch's, or fastmeta's on matrices that stay",
        "in the second cache.",
        "",
    ]  # fmt: skip
    for row in results["rows"]:
        lines += _section(row)
    for title, rows in results["tables"].items():
        lines += ["", f"## {title}", ""]
        lines += [
            f"- {workload}: " + ", ".join(f"{way} {x:.1f}" for way, x in cells.items())
            for workload, cells in rows.items()
        ]
    if results["left out"]:
        lines += ["", "## Left out", "", *(f"- {what}" for what in results["left out"])]
    return "\n".join(lines) + "\n"


def _section(row):
    lines = ["", f"## {row['workload']}, {threads(row)}", "", f"{row['op']}, {row['mode']}."]
    if row["floor"]:
        lines[-1] += (
            f" By the roofline at least {1e6 * row['floor']:.1f} us, {row['floor'] / ours_of(row)['seconds']:.0%} of ours."
        )
    lines += [
        "",
        "| way | us | times ours | first call, ms | ops | memory, MiB |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name in [*row["ours"], *others_of(row)]:
        cell = row["contenders"][name]
        first, ops, memory = (cell.get(key) for key in ("first call", "dispatched", "memory"))
        cells = [
            name,
            _us(cell).replace(" us", ""),
            f"{cell['seconds'] / ours_of(row)['seconds']:.2f}",
            "-" if first is None else f"{1e3 * first:.1f}",
            "-" if ops is None else str(ops),
            "-" if memory is None else f"{memory / 2**20:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines + [f"- {name} not timed: {reason}" for name, reason in row["not timed"].items()]
