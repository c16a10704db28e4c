"""Each head beside its peers: how far values and gradients are apart, time, peak memory.

    python -m measure.heads            # the table of docs/heads.md, whose lines it replaces
    python -m measure.heads ROW WAY    # the KiB that one way takes beside its inputs

The loops of speaker encoders' programs are those of harness/head_formulas.py. pytorch-metric-learning has to be installed: `make peers`.
"""

import gc
import math
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.func import functional_call
from torch.nn.functional import normalize

from fastmeta import heads
from harness import head_formulas as formulas
from harness import installed_peers
from harness.places import ROOT
from measure import machine
from measure.contenders import in_new_process
from measure.timing import turns_of
from measure.usage import peak
from pages.tables import replaced, table

PAGE = ROOT / "docs/heads.md"
BEGIN, END = "<!-- python -m measure.heads writes from here -->", "<!-- python -m measure.heads: to here -->"
LIBRARY = "pytorch-metric-learning"
VOICES, W, B = (64, 10, 256), 10.0, -5.0


class Row(NamedTuple):
    sizes: list[tuple[int, ...]]  # of the leaves
    small: list[tuple[int, ...]]  # for what float64 shows
    ways: Callable[[list[tuple[int, ...]]], dict[str, Callable]]  # by name, ours first


def of_library(name, **options):
    """A loss of the library as a function of embeddings and labels, and its class's proxies, or `W` [D, C], where it has them."""
    loss = getattr(installed_peers.load("pytorch_metric_learning.losses"), name)(**options)

    def fn(z, labels, weight=None):
        if weight is None:
            return loss(z, labels)
        return functional_call(loss, {"proxies": weight} if name == "ProxyNCALoss" else {"W": weight.mT}, (z, labels))

    return fn


def speakers(head, peers):
    def ways(sizes):
        made = head(W, B)
        return {"fastmeta": lambda x: made.to(x.dtype)(x)} | {
            name: lambda x, formula=formula: formula(x, W, B) for name, formula in peers.items()
        }

    return Row([VOICES], [(9, 4, 16)], ways)


def two_views(sizes):
    theirs, head, pairs = of_library("NTXentLoss", temperature=0.1), heads.NTXent(0.1), sizes[0][0]
    return {
        "fastmeta": head,
        LIBRARY: lambda x, y: theirs(torch.cat([x, y]), torch.arange(pairs).repeat(2)),
    }


def labelled(head, name, options, prepared=lambda z: z):
    """Classes of four."""

    def ways(sizes):
        theirs, labels = of_library(name, **options), torch.arange(sizes[0][0]) // 4
        return {"fastmeta": lambda z: head(prepared(z), labels), LIBRARY: lambda z: theirs(z, labels)}

    return Row([(1024, 128)], [(24, 8)], ways)


def proxies(made, arguments, name, options):
    def ways(sizes):
        (rows, width), (classes, _) = sizes
        head, theirs = (
            made(classes, width, *arguments),
            of_library(name, num_classes=classes, embedding_size=width, **options),
        )
        labels = torch.arange(rows) % classes
        return {
            "fastmeta": lambda z, w: functional_call(head, {"weight": w}, (z, labels)),
            LIBRARY: lambda z, w: theirs(z, labels, w),
        }

    return Row([(512, 512), (10_000, 512)], [(24, 8), (10, 8)], ways)


ROWS = {
    "GE2E": speakers(
        heads.GE2E,
        {
            "Real-Time-Voice-Cloning": formulas.ge2e_by_speaker,
            "voxceleb_trainer": formulas.ge2e_by_utterance,
            "coqui TTS": formulas.ge2e_by_pair,
        },
    ),
    "AngleProto": speakers(heads.AngleProto, {"voxceleb_trainer, coqui TTS": formulas.angle_proto_of_pairs}),
    "NTXent": Row([(128, 128)] * 2, [(12, 8)] * 2, two_views),
    "SupCon": labelled(heads.SupCon(0.1), "SupConLoss", {"temperature": 0.1}),
    "NCA": labelled(heads.NCA(0.1), "NCALoss", {"softmax_scale": 10}, lambda z: normalize(z, dim=-1)),
    "ProxyNCA": proxies(heads.ProxyNCA, (0.1,), "ProxyNCALoss", {"softmax_scale": 10}),
    "CosFace": proxies(heads.CosFace, (0.35, 64.0), "CosFaceLoss", {"margin": 0.35, "scale": 64}),
    "ArcFace": proxies(heads.ArcFace, (0.5, 64.0), "ArcFaceLoss", {"margin": math.degrees(0.5), "scale": 64}),
}


def drawn(sizes, dtype):
    torch.manual_seed(0)
    return [torch.randn(size, dtype=dtype, requires_grad=True) for size in sizes]


def with_gradients(fn, leaves):
    loss = fn(*leaves)
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


def apart(row):
    """Of each peer, in float64: the largest difference of the value and of a gradient's element from ours, over the largest there."""
    leaves, found = drawn(row.small, torch.float64), {}
    ours, *others = ((name, with_gradients(fn, leaves)) for name, fn in row.ways(row.small).items())
    for name, results in others:
        differences = [float((x - y).abs().max() / x.abs().max()) for x, y in zip(ours[1], results, strict=True)]
        found[name] = differences[0], max(differences[1:])
    return found


def seconds(row, threads):
    """The least of the turns: of one thread the processor's time, which a neighbour does not add to."""
    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    leaves = drawn(row.sizes, torch.float32)
    runs = {name: lambda fn=fn: with_gradients(fn, leaves) for name, fn in row.ways(row.sizes).items()}
    for run in runs.values():
        run()
    turns, taken = turns_of(runs, min_rounds=60), {name: [] for name in runs}
    for turn in range(turns.rounds):
        for name, run in runs.items():
            if turn % turns.every[name] == 0:
                start = clock()
                for _ in range(turns.calls[name]):
                    run()
                taken[name].append((clock() - start) / turns.calls[name])
    return {name: min(of_way) for name, of_way in taken.items()}


def kibibytes(name, way):
    row = ROWS[name]
    torch.set_num_threads(1)
    leaves, ways, small = drawn(row.sizes, torch.float32), row.ways(row.sizes), drawn(row.small, torch.float32)
    warm = row.ways(row.small)[way]
    gc.collect()
    return peak(lambda: with_gradients(warm, small), lambda: with_gradients(ways[way], leaves))


def cells_of(name):
    """A line of the table for each peer."""
    row = ROWS[name]
    far, one, two = apart(row), seconds(row, 1), seconds(row, 2)
    memory = {way: in_new_process("-m", "measure.heads", name, way, OMP_NUM_THREADS="1") / 1024 for way in one}
    return [
        (
            f"`{name}`", sizes(row), way, f"{far[way][0]:.0e}", f"{far[way][1]:.0e}",
            milliseconds(one["fastmeta"]), times(one[way] / one["fastmeta"]),
            milliseconds(two["fastmeta"]), times(two[way] / two["fastmeta"]),
            f"{memory['fastmeta']:.1f} MiB", f"{memory[way]:.1f} MiB",
        )
        for way in list(one)[1:]
    ]  # fmt: skip


def lines(cells):
    heads_of = (
        "head",
        "leaves",
        "beside",
        "value",
        "gradient",
        "one thread",
        "",
        "two threads",
        "",
        "memory",
        "theirs",
    )
    facts = machine.machine(machine.processor(), "cpu")
    where = f"{facts['device']}, torch {facts['torch']}, {facts['date']}, float32, memory on one thread"
    about = f"{where}; value and gradient in float64 on small sizes:"
    return ["", about, "", *table(heads_of, cells)]


def sizes(row):
    return " and ".join(" x ".join(map(str, size)) for size in row.sizes)


def times(ratio):
    return f"{ratio:.0f}x" if ratio >= 10 else f"{ratio:.1f}x"


def milliseconds(s):
    return f"{1e3 * s:.3g} ms"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(kibibytes(*sys.argv[1:]))
    else:
        PAGE.write_text(
            replaced(PAGE.read_text(), lines([cells for name in ROWS for cells in cells_of(name)]), BEGIN, END)
        )
