"""What acceptance.py found, as markdown; and what of a race is a fault of ours."""

IN_GRAPH = ", graph"


def faults(race, device):
    """Of our ways: results that are wrong and calls that raise, and on a GPU what no CUDA graph could be made of."""
    if "error" in race:
        return [f"{race['group']}: {race['error']}"]
    ours = [way + suffix for way in race["ours"] for suffix in ("", IN_GRAPH)]
    return [f"{race['group']}: {way}: {race['not timed'][way]}" for way in ours if way in race["not timed"]]


def markdown(results):
    facts = results["machine"]
    lines = [f"# fastmeta on {facts['device']}", ""]
    lines += [f"- {name}: {value}" for name, value in facts.items() if "per second" not in name and name != "missing"]
    lines += [f"- not raced, {name}: {reason}" for name, reason in facts.get("missing", {}).items()]
    if "bytes per second" in facts:
        copied, multiplied = facts["bytes per second"] / 1e9, facts["flop per second"] / 1e12
        lines.append(
            f"- measured: a copy {copied:.0f} GB/s (read and written), float32 products {multiplied:.1f} TFLOP/s"
        )
    lines += ["", *of_parts(results["parts"]), *of_groups(results["groups"]), *of_races(results["races"])]
    if info := results.get("info"):
        lines += ["## python -m fastmeta.info", "", "```", *info, "```", ""]
    return "\n".join(lines)


def of_parts(parts):
    rows = [f"| {name} | {part['state']} | {part['seconds']} | {part['words']} |" for name, part in parts.items()]
    return ["| part | state | s | |", "| --- | --- | --- | --- |", *rows, ""]


def of_groups(groups):
    """What did not pass, with its words."""
    bad = [
        f"- {part}, {name}: {found['state']}: {found['words']}"
        for part, of_part in groups.items()
        for name, found in of_part.items()
        if found["state"] != "passed"
    ]
    return ["## Not passed", "", *bad, ""] if bad else []


def of_races(races):
    """A row for each group, then each group's alternatives, and those that were not timed."""
    whole = {name: race for name, race in races.items() if race.get("seconds")}
    tolerances = sorted(
        {
            (race["tolerance"], ", in TF32" * name.endswith("TF32"))
            for name, race in whole.items()
            if "tolerance" in race
        }
    )
    lines = [
        "## Races", "",
        *(f"Results must agree within {of:g} of their norm{where}." for of, where in tolerances), "",
        "Medians in us, contenders in turns, caches warm; eager calls include the host. Floor: the bytes and flops that no way can do",
        "without, at the measured rates, over our time in a graph (eager where there is none). In parentheses: how",
        "many times longer than ours, eager, in a graph, and the better of both.", "",
        "| workload | fastmeta | in a graph | floor | fastest other, eager | in a graph | compiled |",
        "| --- " * 7 + "|", *(of_race(name, race) for name, race in whole.items()), "",
    ]  # fmt: skip
    for name, race in races.items():
        ways = [f"{way} {1e6 * s:.1f}" for way, s in sorted(race.get("seconds", {}).items(), key=lambda of: of[1])]
        reasons = [f"{way} not timed: {why}" for way, why in race.get("not timed", {}).items()]
        reasons += [race["error"]] if "error" in race else []
        lines.append(f"- {name}: {'; '.join(ways + reasons)}")
    return [*lines, ""]


def of_race(name, race):
    seconds, ours = race["seconds"], race["ours"][0]
    best = seconds.get(ours + IN_GRAPH, seconds.get(ours))
    others = {way: s for way, s in seconds.items() if way.removesuffix(IN_GRAPH) not in race["ours"]}
    of_compiled = {way: s for way, s in others.items() if way.startswith("compiled")}
    eager = {way: s for way, s in others.items() if way not in of_compiled and not way.endswith(IN_GRAPH)}
    graphs = {way: s for way, s in others.items() if way not in of_compiled and way.endswith(IN_GRAPH)}
    floor = f"{race['floor'] / best:.2f}" if best and race.get("floor") else "-"
    bases = (seconds.get(ours), seconds.get(ours + IN_GRAPH), best)
    fastest = [_fastest(some, base) for some, base in zip((eager, graphs, of_compiled), bases, strict=True)]
    cells = [name, us(seconds.get(ours)), us(seconds.get(ours + IN_GRAPH)), floor, *fastest]
    return f"| {' | '.join(cells)} |"


def us(seconds):
    return f"{1e6 * seconds:.1f}" if seconds else "-"


def _fastest(ways, ours):
    """Its name, its time and how many times longer than ours."""
    if not ways:
        return "-"
    way, seconds = min(ways.items(), key=lambda of: of[1])
    ratio = f" ({seconds / ours:.2f}x)" if ours else ""
    return f"{way.removesuffix(IN_GRAPH)} {us(seconds)}{ratio}"
