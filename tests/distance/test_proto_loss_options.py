"""proto_loss with biases, classes of several prototypes, smoothed labels and accuracy: a formula in plain PyTorch for all of them."""

import itertools

import pytest
import torch

import fastmeta
from harness.cases import PROTO, interpreted, randn
from harness.compare import check_against_reference, check_threads, values_and_grads
from harness.distance_cases import apart, temperature_for


def formula(q, c, t, bias, given, *, targets, classes, exclude, margin, metric, label_smoothing):
    """Losses [T, Q], and whether the target is the nearest."""
    place = torch.arange(c.shape[-2])
    same = place == targets.unsqueeze(-1) if classes is None else classes.unsqueeze(-2) == targets.unsqueeze(-1)
    distances = apart(q, c, metric)
    distances = distances if given is None else torch.where(same, given.unsqueeze(-1), distances)
    logits = -distances / t + (0 if bias is None else bias.unsqueeze(-2))
    out = (
        torch.zeros_like(same)
        if exclude is None
        else (exclude.unsqueeze(-1) == place) & (targets != -100).unsqueeze(-1)
    )
    first = logits.masked_fill(out, -torch.inf).argmax(-1)
    log_p = (logits - margin * same).masked_fill(out, -torch.inf).log_softmax(-1)
    own = -log_p.masked_fill(~same | out, -torch.inf).logsumexp(-1)
    of_all = -log_p.masked_fill(out, 0).sum(-1) / (~out).sum(-1)
    losses = (1 - label_smoothing) * own + label_smoothing * of_all
    hits = same.gather(-1, first.unsqueeze(-1)).squeeze(-1) & (targets != -100)
    return torch.where(targets == -100, 0, losses), hits.double()


def drawn(kind, metric, Q=19, N=7, D=5):
    """Arguments of proto_loss and the differentiable tensors: query, prototypes, temperature, bias, given."""
    classes = torch.stack([torch.arange(N), torch.arange(N).flip(0)]) % 3 if kind == "classes" else None
    targets = torch.randint(0, 3 if kind == "classes" else N, (2, Q))
    exclude = torch.randint(0, N, (2, Q))
    if kind == "classes":  # some exclude one of their own class, which has another
        exclude = torch.where(exclude >= 6, -1, exclude)
    else:
        exclude = torch.where(exclude == targets, -1, exclude)
    targets[:, 0] = -100
    given = randn(2, Q).square() if kind == "given" else None
    options = {
        "targets": targets, "classes": classes, "exclude": exclude, "metric": metric,
        "margin": 0.3 if kind == "given" else 0.0, "label_smoothing": 0.0 if kind == "plain" else 0.2,
    }  # fmt: skip
    tensors = [randn(2, Q, D), randn(2, N, D), torch.tensor(temperature_for(metric, D)).double(), randn(2, N)]
    return options, tensors if given is None else [*tensors, given]


def ours(options, reduction="none", return_accuracy=True):
    def fn(q, c, t, bias=None, given=None):
        return fastmeta.proto_loss(
            q,
            c,
            temperature=t,
            bias=bias,
            target_distance=given,
            reduction=reduction,
            return_accuracy=return_accuracy,
            **options,
        )

    return fn


@pytest.mark.parametrize(
    ("backend", "kind", "metric"),
    [
        (backend, kind, metric)
        for backend in PROTO
        for kind, metric in (
            ("plain", "euclidean"),
            ("given", "sqeuclidean"),
            ("classes", "cosine"),
            ("classes", "euclidean"),
        )
        if (kind, metric) != ("classes", "euclidean") or not interpreted(backend)
    ],
    indirect=["backend"],
)
def test_is_its_formula(backend, kind, metric):
    """In the slow interpreter one reduction of each."""
    options, tensors = drawn(kind, metric)

    def truth(reduction):
        def fn(q, c, t, bias, given=None):
            found = formula(q, c, t, bias, given, **options)
            counted = (options["targets"] != -100).sum(-1) if reduction == "mean" else 1
            return found if reduction == "none" else tuple(x.sum(-1) / counted for x in found)

        return fn

    reductions = ("mean", "sum", "none")
    if interpreted(backend):
        turn = ("plain euclidean", "given sqeuclidean", "classes cosine").index(f"{kind} {metric}")
        reductions = reductions[turn : turn + 1]
    for reduction in reductions:
        fns = ours(options, reduction), truth(reduction)
        torch.testing.assert_close(fns[0](*tensors)[1], fns[1](*tensors)[1])
        torch.testing.assert_close(*(values_and_grads(lambda *x, fn=fn: fn(*x)[0], tensors) for fn in fns))
    leaves = [x.requires_grad_() for x in tensors]
    torch.testing.assert_close(
        *(
            torch.autograd.grad(
                sum(g.square().sum() for g in torch.autograd.grad(loss.sum(), leaves, create_graph=True)), leaves
            )
            for loss in (ours(options)(*leaves)[0], truth("none")(*leaves)[0])
        )
    )


@pytest.mark.cpu
def test_what_is_not_given_is_no_input_of_the_graph():
    """An input costs autograd a microsecond, also where it is None."""
    options, (q, c, _, bias) = drawn("plain", "euclidean")
    targets, exclude = options["targets"], options["exclude"]
    for more, inputs in (({}, 4), ({"label_smoothing": 0.1}, 4), ({"exclude": exclude}, 5), ({"bias": bias}, 7)):
        loss = fastmeta.proto_loss(q.requires_grad_(), c, targets, **more)
        assert len(loss.grad_fn.needs_input_grad) == inputs, more


@pytest.mark.parametrize(
    ("kind", "dtype", "N"),
    [*itertools.product(("given", "classes"), (torch.float32, torch.float16), (7,)), ("classes", torch.float32, 67)],
)
def test_is_as_exact_as_the_reference(kind, dtype, N):
    """Shared prototypes too, whose biases are shared."""
    options, tensors = drawn(kind, "sqeuclidean", Q=35, N=N, D=65 if N > 64 else 5)
    with fastmeta.backend("ext"):
        fn = ours(options, "mean", False)

        def moved(is_shared=False):
            near = [x.to(dtype) * (1 + 0.1 * torch.rand(()).to(dtype)) for x in tensors]
            return [x[0] if is_shared and i in (1, 3) else x for i, x in enumerate(near)]

        check_against_reference(fn, moved, "ext")
        for reduction in ("mean", "none"):
            check_against_reference(ours(options, reduction, False), lambda: moved(is_shared=True), "ext")
        check_threads(lambda: values_and_grads(fn, tensors))


def test_far_positives_ties_nan_and_minus_infinite_biases():
    alike = {"classes": torch.tensor([0, 1, 1, 2]), "metric": "sqeuclidean"}
    far = lambda q, c, bias: fastmeta.proto_loss(q, c, torch.tensor([1]), bias=bias, **alike)  # noqa: E731
    options = {"reduction": "none", "return_accuracy": True}
    q, targets = torch.zeros(4, 1), torch.tensor([0, 1, 0, -100])
    q[2] = torch.nan
    for backend in PROTO:
        with fastmeta.backend(backend):
            hits = fastmeta.proto_loss(q, torch.ones(2, 1), targets, **options)[1]
            assert hits.tolist() == [1, 0, 0, 0]  # of equal ones the first
            tensors = [torch.zeros(1, 1), torch.tensor([[0.0], [1e3], [1e3], [-1e4]]), torch.zeros(4)]
            loss, _, to_far, _ = values_and_grads(far, [x.double() if backend == "reference" else x for x in tensors])
            assert loss == pytest.approx(1e6, rel=1e-5)  # of positives that are far beyond what exp gives
            assert to_far[1:3].flatten().tolist() == pytest.approx([1e3, 1e3])  # a half to each
            bias = torch.tensor([0.0, -torch.inf]).requires_grad_()
            loss, hits = fastmeta.proto_loss(
                torch.ones(1, 1), torch.tensor([[0.0], [1.0]]), torch.tensor([0]), bias=bias, **options
            )
            assert loss == 0 and hits == 1 and torch.autograd.grad(loss, bias)[0].tolist() == [0, 0]


def test_transforms_compile_and_autocast():
    options, tensors = drawn("classes", "cosine")
    fn = ours(options, "mean")
    truth = values_and_grads(lambda *x: fn(*x)[0], tensors)
    torch._dynamo.reset()
    compiled = torch.compile(fn, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(values_and_grads(lambda *x: compiled(*x)[0], tensors), truth)
    assert torch.equal(compiled(*tensors)[1], fn(*tensors)[1]) and not fn(*tensors)[1].requires_grad
    by_func = torch.func.grad(lambda *x: fn(*x)[0].sum(), (0, 1, 2, 3))(*tensors)
    torch.testing.assert_close([*by_func], truth[1:])
    of_bias = torch.func.vmap(lambda b: fn(*tensors[:3], b)[0], 0)(torch.stack([tensors[3], -tensors[3]]))
    torch.testing.assert_close(of_bias, torch.stack([fn(*tensors[:3], b)[0] for b in (tensors[3], -tensors[3])]))
    narrow = [x.bfloat16() for x in tensors]
    with torch.autocast("cpu", torch.bfloat16):
        loss, hits = fn(*narrow)
    assert loss.dtype == hits.dtype == torch.float32
    torch.testing.assert_close(loss, truth[0].float(), rtol=2e-2, atol=2e-2)
    meta = {name: x.to("meta") if isinstance(x, torch.Tensor) else x for name, x in options.items()}
    assert all(x.is_meta and x.shape == (2,) for x in ours(meta, "mean")(*(x.to("meta") for x in tensors)))


@pytest.mark.parametrize(
    ("backend", "dtype", "reduction"),
    [
        *((b, torch.float64, "mean") for b in PROTO),
        ("ext", torch.bfloat16, "none"),
        ("reference", torch.bfloat16, "none"),
    ],
    indirect=["backend"],
)
def test_accuracy_beside_value_and_gradients(backend, dtype, reduction):
    """37 ways: more than a block. What is excluded is often the nearest; a margin does not move the nearest."""
    options, tensors = drawn("plain", "euclidean", Q=5, N=37)
    targets, q, c = options["targets"], *(x.to(dtype) for x in tensors[:2])
    far = torch.cdist(q.double(), c.double()).scatter(-1, options["exclude"].clamp(min=0).unsqueeze(-1), torch.inf)
    options = {"exclude": options["exclude"].clamp(min=0), "margin": 0.4, "reduction": reduction}
    targets = torch.where(targets == options["exclude"], (targets + 1) % 37, targets)
    targets[:, ::2] = far.argmin(-1)[:, ::2]
    targets[0, 0] = -100
    run = fastmeta.value_and_grad(fastmeta.proto_loss, (0, 1))
    (loss, hits), grads = run(q, c, targets, return_accuracy=True, **options)
    expected = run(q, c, targets, **options)
    assert torch.equal(loss, expected[0]) and all(map(torch.equal, grads, expected[1])) and hits.dtype == dtype
    right = (far.argmin(-1) == targets).to(dtype)
    torch.testing.assert_close(
        hits, right if reduction == "none" else (right.double().sum(-1) / (targets != -100).sum(-1)).to(dtype)
    )


@pytest.mark.cpu
def test_errors():
    q, c, targets = torch.ones(4, 3), torch.ones(2, 3), torch.tensor([0, 1, 0, 1])
    classes = torch.tensor([0, 1])
    for options, error, message in (
        ({"label_smoothing": 1.5}, ValueError, r"label_smoothing must be in \[0, 1\], got 1.5"),
        ({"bias": q}, ValueError, r"bias must have shape \[2\], got \[4, 3\]"),
        ({"bias": q[0, :2].double()}, TypeError, "bias must have the dtype of query"),
        ({"classes": targets}, ValueError, r"classes must have shape \[2\], got \[4\]"),
        ({"classes": classes.int()}, TypeError, "classes must be int64 class indices"),
        ({"classes": classes + 1}, ValueError, "a prototype of each target's class must count, got none for 0"),
        ({"classes": classes, "exclude": targets}, ValueError, "a prototype of each target's class must count, got none for 0"),
        ({"classes": classes, "margin": 0.1}, ValueError, "classes must go without margin and target_distance"),
        ({"return_accuracy": 2}, TypeError, "return_accuracy must be True or False"),
    ):  # fmt: skip
        with pytest.raises(error, match="proto_loss: " + message):
            fastmeta.proto_loss(q, c, targets, **options)
    wrong = fastmeta.proto_loss(q.to("meta"), c.to("meta"), targets.to("meta"), classes=classes.to("meta") + 1)
    assert wrong.is_meta
