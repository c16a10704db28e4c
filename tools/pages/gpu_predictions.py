"""Writes what measure.gpu_model predicts into tools/gpu.md, between its two markers; `make gpu-report` runs it."""

from harness.places import ROOT
from measure import gpu_conv_model, gpu_model
from measure.gpu_conv_model import Conv
from measure.gpu_model import CARDS, Head, Mlp, plan
from pages.tables import replaced, table

PAGE = ROOT / "tools/gpu.md"
BEGIN, END = "<!-- predictions from here -->", "<!-- predictions to here -->"
SHOWN = ("H100", "H200")
WORKLOADS = {
    "mlp_meta_loss, sinusoid MAML (1, 40, 40, 1), 25 tasks, K = 1": Mlp((1, 40, 40, 1), 25, 10, 10, 1),
    "the same, K = 5": Mlp((1, 40, 40, 1), 25, 10, 10, 5),
    "the same, 1000 tasks": Mlp((1, 40, 40, 1), 1000, 10, 10, 5),
    "mlp_meta_loss, linear head, D = 64, 32 tasks, K = 5": Mlp((64, 5), 32, 25, 75, 5),
    "the same, D = 1600": Mlp((1600, 5), 32, 25, 75, 5),
    "mlp_meta_loss, (784, 64, 64, 10), 8 tasks of 100 + 100, K = 1": Mlp((784, 64, 64, 10), 8, 100, 100, 1),
    "these 8 tasks, K = 5": Mlp((784, 64, 64, 10), 8, 100, 100, 5),
    "mlp_hvp, softmax regression, 32 x (25, 640, 5)": Mlp((640, 5), 32, 25),
    "mlp_hvp, (784, 64, 64, 10), n = 100, 1 task": Mlp((784, 64, 64, 10), 1, 100),
    "the same, 32 tasks": Mlp((784, 64, 64, 10), 32, 100),
    "conv_meta_loss, Conv4 of 64 channels, 28 x 28, 32 tasks of 5 + 75, K = 1": Conv(64, 1, 28, 5, 32, 5, 75, 1),
    "the same, 32 channels, 84 x 84, 4 tasks of 25 + 75, K = 5": Conv(32, 3, 84, 5, 4, 25, 75, 5),
    "the same, 64 channels": Conv(64, 3, 84, 5, 4, 25, 75, 5),
    "proto_loss, 1 x (75, 5, 64)": Head(1, 75, 5, 64),
    "proto_loss, 1 x (75, 5, 1600)": Head(1, 75, 5, 1600),
    "proto_loss, 32 x (75, 5, 640)": Head(32, 75, 5, 640),
    "proto_loss, 32 x (75, 20, 64)": Head(32, 75, 20, 64),
}


def lines():
    heads = [
        "workload",
        "way",
        "launches",
        *[f"{card}: ours, theirs in a graph" for card in SHOWN],
        "ours eager",
        "their kernels",
    ]
    return table(heads, [row(name, p) for name, p in WORKLOADS.items()])


def row(name, p):
    cards = [CARDS[card] for card in SHOWN]
    assert not isinstance(p, Mlp) or len({plan(card, p) for card in cards}) == 1
    way = plan(cards[0], p).way if isinstance(p, Mlp) else "by task" if isinstance(p, Head) else "by layer"
    model = gpu_conv_model if isinstance(p, Conv) else gpu_model
    times = [[1e6 * model.seconds(card, p), 1e6 * model.others(card, p)[1]] for card in cards]
    shown = [f"{ours:.0f}, {theirs:.0f} ({theirs / ours:.1f}x)" for ours, theirs in times]
    eager = f"{1e6 * model.seconds(cards[-1], p, 'eager'):.0f}"
    return [name, way, str(model.launches(cards[0], p)), *shown, eager, str(model.others(cards[0], p)[0])]


if __name__ == "__main__":
    PAGE.write_text(replaced(PAGE.read_text(), lines(), BEGIN, END))
