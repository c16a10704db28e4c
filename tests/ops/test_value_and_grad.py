"""value_and_grad of every op, against autograd; and that a fused loss is one native call without autograd's."""

import inspect

import pytest
import torch
from torch import Tensor

import fastmeta
from fastmeta import _autograd, _route, value_and_grad
from fastmeta.value_and_grad import FUSED
from harness.argument_cases import arguments
from harness.cases import BACKENDS, OPS
from harness.compare import outputs

EVERYWHERE = [(op, backend) for op in OPS if op != "hvp" for backend in BACKENDS[op]]


def is_differentiable(x):
    items = x if isinstance(x, list) else [x]
    return all(isinstance(item, Tensor) and item.is_floating_point() for item in items)


def call_of(op):
    """The function, its positional arguments in float64, the keywords, and which arguments have gradients."""
    fn, given = getattr(fastmeta, op), arguments(op)
    double = lambda x: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x  # noqa: E731
    given = {k: [double(y) for y in x] if isinstance(x, list) else double(x) for k, x in given.items()}
    kinds = {name: p.kind for name, p in inspect.signature(fn).parameters.items()}
    positional = [
        given.pop(name) for name, kind in kinds.items() if kind is not inspect.Parameter.KEYWORD_ONLY and name in given
    ]
    return fn, positional, given, tuple(i for i, x in enumerate(positional) if is_differentiable(x))


def by_autograd(fn, args, kwargs, places):
    fresh = [
        [y.detach().clone().requires_grad_() for y in x] if isinstance(x, list) and i in places
        else x.detach().clone().requires_grad_() if i in places else x
        for i, x in enumerate(args)
    ]  # fmt: skip
    value = fn(*fresh, **kwargs)
    leaves = [leaf for i in places for leaf in (fresh[i] if isinstance(fresh[i], list) else [fresh[i]])]
    total = sum(y.sum() for y in outputs(value))
    return value, torch.autograd.grad(total, leaves, materialize_grads=True)


@pytest.mark.parametrize("unseen", [False, True], ids=["values are seen", "values are unseen"])
@pytest.mark.parametrize(("op", "backend"), EVERYWHERE, indirect=["backend"])
def test_equals_autograd(op, backend, unseen, monkeypatch):
    """Where no check looks at values, as on CUDA, a second call goes where the first one went."""
    fn, args, kwargs, places = call_of(op)
    expected, expected_grads = by_autograd(fn, args, kwargs, places)
    if unseen:
        monkeypatch.setattr(_route, "UNSEEN", {"cpu", "cuda"})
        value_and_grad(fn, places)(*args, **kwargs)
        again, _ = by_autograd(fn, args, kwargs, places)
        torch.testing.assert_close(outputs(again), outputs(expected))
    value, grads = value_and_grad(fn, places)(*args, **kwargs)
    torch.testing.assert_close(outputs(value), outputs(expected))
    torch.testing.assert_close(outputs(grads), tuple(expected_grads))
    assert not any(x.requires_grad for x in (*outputs(value), *outputs(grads)))
    for place, grad in zip(places, grads, strict=True):
        assert isinstance(grad, list) == isinstance(args[place], list)


@pytest.mark.parametrize("op", FUSED)
@pytest.mark.cpu
def test_a_fused_loss_is_one_native_call(op, monkeypatch):
    fn, args, kwargs, places = call_of(op)

    def refuse(*_):
        raise AssertionError("autograd was asked")

    monkeypatch.setattr(_autograd.Op, "untransformed", refuse)
    monkeypatch.setattr(torch.autograd, "grad", refuse)
    for order in (places, places[::-1], places[:1]):
        value, grads = value_and_grad(fn, order)(*args, **kwargs)
        assert value.shape == (2,) and len(grads) == len(order)


@pytest.mark.cpu
def test_a_number_gives_its_gradient_alone_and_a_list_keeps_what_is_none():
    params, x = [torch.randn(3, 4), None], torch.randn(2, 5, 4)
    labels = torch.randint(0, 3, (2, 5))
    _, grads = value_and_grad(fastmeta.mlp_loss)(params, x, labels)
    assert grads[0].shape == (3, 4) and grads[1] is None
    lr = torch.tensor(0.1)
    _, of_rate = value_and_grad(fastmeta.mlp_meta_loss, 1)(params, lr, x, labels, x, labels, steps=2)
    assert of_rate.shape == ()


@pytest.mark.parametrize("op", FUSED)
def test_results_stay_differentiable_where_an_argument_requires_grad(op):
    fn, args, kwargs, places = call_of(op)
    first = args[0][0] if isinstance(args[0], list) else args[0]
    run = value_and_grad(fn, places[-1])

    def gradient_of(x):
        given = [[x, *args[0][1:]] if isinstance(args[0], list) else x, *args[1:]]
        value, grad = run(*given, **kwargs)
        return value.sum() + outputs(grad)[0].pow(2).sum()

    leaf = first.clone().requires_grad_()
    (found,) = torch.autograd.grad(gradient_of(leaf), leaf)
    direction = torch.randn_like(first)
    with torch.no_grad():
        change = (gradient_of(first + 1e-6 * direction) - gradient_of(first - 1e-6 * direction)) / 2e-6
    torch.testing.assert_close((found * direction).sum(), change, rtol=1e-5, atol=1e-7)
    with torch.no_grad():
        value, grad = run(*args, **kwargs)
    assert not value.requires_grad and not outputs(grad)[0].requires_grad


def test_under_transforms_and_compile():
    query, centres = torch.randn(2, 6, 4, dtype=torch.float64), torch.randn(2, 3, 4, dtype=torch.float64)
    labels = torch.randint(0, 3, (2, 6))
    run = value_and_grad(fastmeta.proto_loss, (0, 1))
    expected = run(query, centres, labels)
    for found in (
        torch.vmap(run)(query, centres, labels),
        torch.compile(run, backend="aot_eager", fullgraph=True)(query, centres, labels),
    ):
        torch.testing.assert_close(found, expected)
    with torch.autocast(query.device.type, dtype=torch.bfloat16):
        torch.testing.assert_close(run(query, centres, labels), expected)
    hessian = torch.func.jacrev(lambda q: run(q, centres, labels)[1][0])(query)
    by_hand = torch.autograd.functional.hessian(lambda q: fastmeta.proto_loss(q, centres, labels).sum(), query)
    torch.testing.assert_close(hessian, by_hand)


@pytest.mark.cpu
def test_errors_and_what_comes_after_them():
    query, centres, labels = torch.randn(6, 4), torch.randn(3, 4), torch.randint(0, 3, (6,))
    run = value_and_grad(fastmeta.proto_loss, (0, 1))
    for wrong, error, words in (
        (lambda: value_and_grad(torch.add), TypeError, "value_and_grad: op must be an op of fastmeta"),
        (lambda: value_and_grad(fastmeta.proto_loss, -1), ValueError, "value_and_grad: argnums must be at least 0"),
        (
            lambda: value_and_grad(fastmeta.proto_loss, (0, 0)),
            ValueError,
            "value_and_grad: argnums must be at least one",
        ),
        (lambda: value_and_grad(fastmeta.proto_loss, ()), ValueError, "value_and_grad: argnums must be at least one"),
        (
            lambda: value_and_grad(fastmeta.proto_loss, 3)(query, centres, labels),
            ValueError,
            "argnums must be of positional",
        ),
        (
            lambda: value_and_grad(fastmeta.proto_loss, 2)(query, centres, labels),
            TypeError,
            "argument 2 of proto_loss must be",
        ),
        (lambda: run(query, centres[:, :3], labels), ValueError, "proto_loss: query and prototypes"),
        (lambda: run(query, centres, labels + 3), ValueError, "proto_loss: targets"),
    ):
        with pytest.raises(error, match=words):
            wrong()
        value, grads = run(query, centres, labels)
        assert value.shape == () and grads[0].shape == query.shape
        assert (
            fastmeta.proto_loss(query, centres, labels) == value
        )  # an op that is called next is not asked for gradients


def small():
    torch.manual_seed(4)
    return torch.randn(4, 3), torch.randn(4, 3), torch.tensor([0, 3, 1, -100])


@pytest.mark.cpu
def test_out_is_the_memory_of_the_results():
    run, args = fastmeta.value_and_grad(fastmeta.proto_loss, (0, 1)), small()
    expected, result = run(*args), run(*args)
    places = [x.data_ptr() for x in (result[0], *result[1])]
    for x in (result[0], *result[1]):
        x.fill_(torch.nan)
    assert run(*args, out=result) is result
    assert [x.data_ptr() for x in (result[0], *result[1])] == places
    torch.testing.assert_close(result, expected, rtol=0, atol=0)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_out_of_any_form(backend):
    """Transposed, in the memory of an argument, of an op without native gradients, a list with None."""
    run, args = fastmeta.value_and_grad(fastmeta.proto_loss, (0, 1)), small()
    with fastmeta.backend(backend):
        value, (dquery, dprototypes) = run(*args)
        query = args[0].clone()
        out = torch.empty(()), (query, torch.empty(3, 4).T)
        run(query, *args[1:], out=out)
        torch.testing.assert_close(out, (value, (dquery, dprototypes)))

        params, x, y = [torch.randn(2, 3), None], torch.randn(5, 4, 3), torch.randint(2, (5, 4))
        of_loss = fastmeta.value_and_grad(fastmeta.mlp_loss)
        expected = of_loss(params, x, y)
        result = torch.empty(5), [torch.empty(2, 3), None]
        assert of_loss(params, x, y, out=result) is result
        torch.testing.assert_close(result, expected)

        of_log_probs = fastmeta.value_and_grad(fastmeta.proto_log_softmax)
        found = of_log_probs(*args[:2], out=(torch.empty(4, 4), torch.empty(4, 3)))
        torch.testing.assert_close(found, of_log_probs(*args[:2]))


def test_out_that_does_not_fit():
    run, args = fastmeta.value_and_grad(fastmeta.proto_loss), small()
    kept = torch.ones(3, 4), torch.zeros(())
    with pytest.raises(ValueError, match=r"^value_and_grad: out must be \(value, gradients\) .* got "):
        run(*args, out=kept)
    assert kept[0].eq(1).all()
    with pytest.raises(ValueError, match="^value_and_grad: out must be None where"):
        run(args[0].clone().requires_grad_(), *args[1:], out=run(*args))
