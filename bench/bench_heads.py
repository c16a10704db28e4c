from functools import partial

import pytest
import torch

from fastmeta import heads
from harness import head_formulas as formulas
from measure.contenders import compiled, forward_and_backward, on_backends


def race_of(race, name, head, formula, leaves, pairs, memory=False, others=None):
    """`formula`: the loss by whole matrices; `others`: by other ways. `pairs`: similarities that it takes, 6 flops of each feature."""
    race(
        name,
        on_backends(forward_and_backward(head, leaves), reference=False)
        | {way: forward_and_backward(of, leaves) for way, of in {"whole matrix": formula, **(others or {})}.items()},
        compiled={"compiled whole matrix": forward_and_backward(compiled(formula), leaves)},
        truth=forward_and_backward(formula, leaves),
        floor=(2 * sum(t.nbytes for t in leaves), 6 * pairs * leaves[0].shape[-1]),
        mode="forward + backward",
        memory=memory,
    )


@pytest.mark.parametrize("name", ["NTXent", "SupCon"])
def bench_contrastive(race, name):
    """The similarities of all pairs of 4096 embeddings of 512 features. SupCon: classes of four."""
    rows, D = 4096, 512
    labels = torch.arange(rows) % (rows // 4)
    leaves = [torch.randn(rows // 2, D, requires_grad=True) for _ in range(2)]
    if name == "NTXent":
        ours, whole = heads.NTXent(0.1), lambda *views: formulas.nt_xent(*views, 0.1)
    else:
        head = heads.SupCon(0.1)
        ours, whole = (
            lambda *views: head(torch.cat(views), labels),
            lambda *views: formulas.sup_con(torch.cat(views), labels, 0.1),
        )
    race_of(race, f"{name} B{rows} D{D}", ours, whole, leaves, rows * rows, memory=True)


@pytest.mark.parametrize("name", ["GE2E", "AngleProto"])
def bench_speakers(race, name):
    """64 speakers, 10 utterances, 256 features, beside the loops and the expanded pairs of the trainers of speaker encoders."""
    speakers, utterances, D = 64, 10, 256
    leaves = [torch.randn(speakers, utterances, D, requires_grad=True)]
    head, whole, others = {
        "GE2E": (
            heads.GE2E(),
            formulas.ge2e,
            {"by speaker": formulas.ge2e_by_speaker, "by utterance": formulas.ge2e_by_utterance},
        ),
        "AngleProto": (heads.AngleProto(), formulas.angle_proto, {"of pairs": formulas.angle_proto_of_pairs}),
    }[name]
    queries = speakers * (utterances if name == "GE2E" else 1)
    named = {way: partial(formula, w=10.0, b=-5.0) for way, formula in {"": whole, **others}.items()}
    race_of(race, f"{name} {speakers}x{utterances}x{D}", head, named.pop(""), leaves, queries * speakers, others=named)


@pytest.mark.parametrize("name", ["CosFace", "ArcFace"])
def bench_proxies(race, name):
    """512 embeddings against 10000 proxies of 512 features."""
    B, classes, D = 512, 10_000, 512
    leaves = [torch.randn(B, D, requires_grad=True), torch.randn(classes, D, requires_grad=True)]
    labels, head = torch.randint(0, classes, (B,)), getattr(heads, name)(classes, D, 0.3, 64.0)
    formula = {"CosFace": formulas.cos_face, "ArcFace": formulas.arc_face}[name]

    def ours(x, weight):
        return torch.func.functional_call(head, {"weight": weight}, (x, labels))

    race_of(
        race, f"{name} B{B} N{classes} D{D}", ours, lambda x, w: formula(x, w, labels, 0.3, 64.0), leaves, B * classes
    )
