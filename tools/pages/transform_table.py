"""Where transforms raise, and the table of docs/transforms.md, which `make transforms` writes between its markers.

tests/ops/test_transforms.py checks every cell: "works" against `TRANSFORMS`, "raises" by the message.
"""

from harness.places import ROOT
from harness.transform_truths import OPS, SUBJECTS
from harness.transforms import TRANSFORMS
from pages.tables import replaced, table

PAGE = ROOT / "docs/transforms.md"
BEGIN, END = "<!-- make transforms writes from here -->", "<!-- to here -->"

OUTSIDE = "must run outside torch.func, forward-mode AD and torch.compile, got a call inside"
OUTSIDE_EXPORT = "must run outside torch.export, got a call inside"
FIRST_ORDER = "the meta-gradient must be of first order, got create_graph=True"
NO_DOUBLE_BACKWARD = "torch.compile with aot_autograd does not currently support double backward"
NO_HOOKS = "torch.func.{grad, vjp, jacrev, hessian} don't yet support saved tensor hooks"
NO_LSTM_VMAP = "Batching rule not implemented for aten::lstm.input"
NO_LSTM_COMPILE = "Attempted to wrap RNN, GRU, or LSTM"

SECOND_OF_COMPILED = "a second derivative of a compiled function"
COMPILED = ("`torch.compile`, forward and backward", SECOND_OF_COMPILED, "`torch.compile` of `vmap(grad)`")
EXPORTED = ("`torch.export`, `strict=False`", "`torch.export`, `strict=True`")
OF_AUTOGRAD = (  # what the learners with a gradient of their own kind work under
    "autograd", "`is_grads_batched`", "`no_grad`", "`inference_mode`", "`functional_call`",
    "`checkpoint`, `use_reentrant=False`", "`checkpoint`, `use_reentrant=True`",
    "`use_deterministic_algorithms(True)`", "`make_fx`",
)  # fmt: skip


def _of_first_order(learner):
    others = [name for name in TRANSFORMS if name not in OF_AUTOGRAD]
    return dict.fromkeys(others, f"{learner}: {OUTSIDE}") | {
        "double backward": f"{learner}: {FIRST_ORDER}",
        "double backward in a `TorchDispatchMode`": f"{learner}: {FIRST_ORDER}",
        **_of_any_module(learner),
    }


def _of_any_module(learner):
    return dict.fromkeys(EXPORTED, f"{learner}: {OUTSIDE_EXPORT}")


RAISES = {name: {SECOND_OF_COMPILED: NO_DOUBLE_BACKWARD} for name in SUBJECTS}  # by subject, by transform: the message
RAISES["hvp"] |= {"`checkpoint`, `use_reentrant=False`": NO_HOOKS, **_of_any_module("hvp")}
RAISES["MAML (any module)"] |= _of_any_module("MAML")
RAISES["MetaSGD (any module)"] |= _of_any_module("MetaSGD")
RAISES["ProtoMAML"] |= _of_any_module("ProtoMAML")
RAISES["MatchingNet (FullContext)"] |= dict.fromkeys(("`vmap`, one tensor", "`grad(vmap)`"), NO_LSTM_VMAP)
RAISES["MatchingNet (FullContext)"] |= dict.fromkeys(COMPILED, NO_LSTM_COMPILE)
RAISES["IMAML"] |= _of_first_order("IMAML")
RAISES["Reptile"] |= _of_first_order("Reptile")
del RAISES["Reptile"]["`vmap` of backward"]

CELLS = [(name, t) for name in SUBJECTS for t in TRANSFORMS if not (TRANSFORMS[t].learners_only and name in OPS)]


def lines() -> list[str]:
    """The table, a column for all subjects that do alike, and the messages."""
    notes: list[str] = []

    def cell(name, transform):
        if (name, transform) not in CELLS:
            return "-"
        message = RAISES[name].get(transform)
        if message is None:
            return "works"
        general = message.removeprefix(f"{name.split(' (')[0]}: ")
        if general not in notes:
            notes.append(general)
        return f"raises ({notes.index(general) + 1})"

    columns = {name: tuple(cell(name, t) for t in TRANSFORMS) for name in SUBJECTS}
    alike: dict[tuple[str, ...], list[str]] = {}
    for name, cells in columns.items():
        alike.setdefault(cells, []).append(f"`{name}`" if name in OPS else name)
    rows = zip(TRANSFORMS, *alike, strict=True)
    heads = ["transform", *(", ".join(names) for names in alike.values())]
    return [*table(heads, rows), *(f"{i}. `{note}`" for i, note in enumerate(notes, 1)), ""]


def page() -> str:
    return replaced(PAGE.read_text(), lines(), BEGIN, END)


if __name__ == "__main__":
    PAGE.write_text(page())
