"""Weights of the examples in the ops of networks, beyond what each op's table has."""

import inspect

import pytest
import torch
import torch.nn.functional as F

import fastmeta
from fastmeta import _autograd
from harness import conv_cases, mlp_calls, mlp_cases
from harness.compare import check_against_reference, outputs, values_and_grads
from harness.mlp_cases import everywhere, losses, native

D = torch.float64
CALLS = {
    "loss": mlp_calls.loss,
    "grad": mlp_calls.grad,
    "hessian": mlp_calls.hvp,
    "ggn": lambda p: mlp_calls.hvp(p, "ggn"),
    "adapt": lambda p: mlp_calls.adapt(p, "scalar", 2),
    "meta_loss": lambda p: mlp_calls.meta_loss(p, "scalar", 2),
}
calls = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


def networks(loss="cross_entropy"):
    """An MLP and a convolutional network; the conv ops have no CUDA kernels."""
    yield mlp_cases.problem((3, 5, 4), 7, loss=loss, weights=True)
    if fastmeta._dispatch.forced() in ("ext", "reference"):
        yield conv_cases.problem((fastmeta.ConvBlock(eps=0.1),), 7, size=4, ways=4, loss=loss, weights=True)


@losses
@everywhere
def test_by_hand(backend, loss):
    """Each example's loss times its weight, over the number of those that are not ignored."""
    for p in networks(loss):
        p.y[:, 0] = 0.5 if loss == "mse" else -100
        found = p.op("loss")(p.params, p.x, p.y, weights=p.weights, **p.options())
        z = p.op("forward")(p.params, p.x, **p.of_network())
        for t in range(3):
            each = (
                F.mse_loss(z[t], p.y[t], reduction="none").mean(1)
                if loss == "mse"
                else F.cross_entropy(z[t], p.y[t], reduction="none")
            )
            count = 7 if loss == "mse" else (p.y[t] != -100).sum()
            torch.testing.assert_close(found[t], (p.weights[t] * each).sum() / count)


@losses
@calls
@everywhere
def test_ones_are_none(backend, call, loss):
    for p in networks(loss):
        found = []
        for p.weights in (None, torch.ones(3, 7, dtype=D)):
            torch.manual_seed(0)
            p.drawn_weights = lambda n: torch.ones(3, n, dtype=D)  # of the query
            fn, tensors = call(p)
            found.append(outputs(fn(*tensors)))
        torch.testing.assert_close(*found, rtol=1e-12, atol=1e-13)


@calls
@everywhere
def test_the_weight_of_an_ignored_example_counts_nothing(backend, call):
    """Even where it is NaN; the gradient to it is 0."""
    for p in networks():
        p.y[1, 2] = -100
        fn, tensors = call(p)
        place = next(i for i, t in enumerate(tensors) if t is p.weights)
        found = []
        for weight in (torch.nan, 1.0):
            tensors[place] = p.weights.clone()
            tensors[place][1, 2] = weight
            found.append(values_and_grads(fn, tensors))
        torch.testing.assert_close(*found, rtol=0, atol=0)
        of_weights = found[0][len(found[0]) - len(tensors) + place]
        assert of_weights[1, 2] == 0 and (call is CALLS["ggn"] or of_weights.count_nonzero() > 3)


@losses
@calls
@pytest.mark.parametrize("weight", [torch.nan, torch.inf, -torch.inf, 0.0])
@native
def test_other_weights(backend, weight, call, loss):
    """As the reference: the same numbers, and the same numbers are finite. 0 in the whole of a task."""
    for p in networks(loss):
        if loss == "cross_entropy":
            p.y[1, 2] = 1
        fn, tensors = call(p)
        p.weights[1, 2:] = weight
        p.weights[2] = 0
        ours = values_and_grads(fn, tensors)
        with fastmeta.backend("reference"):
            expected = values_and_grads(fn, tensors)
        for pair in zip(ours, expected, strict=True):
            torch.testing.assert_close(
                *(x.where(x.isfinite(), torch.nan) for x in pair), equal_nan=True, rtol=1e-9, atol=1e-11
            )


@losses
@native
def test_a_head_of_many_features(backend, loss):
    """Whose inner loop a CPU runs by products of the examples with each other."""
    for shared in (True, False):
        p = mlp_cases.problem((150, 3), 5, loss=loss, shared=shared, weights=True)
        check_against_reference(*mlp_calls.meta_loss(p, "per tensor", 3), backend)
        check_against_reference(*mlp_calls.meta_loss(p, "scalar", 2, True), backend)


@losses
@pytest.mark.cpu
def test_many_examples_of_one_task(loss):
    """Whose products with the Hessian a CPU splits."""
    p = mlp_cases.problem((40, 20, 3), 300, T=1, loss=loss, weights=True)
    for call in (mlp_calls.grad, mlp_calls.hvp):
        check_against_reference(*call(p), "ext")


@losses
@native
def test_float32(backend, loss):
    for call in (mlp_calls.loss, CALLS["meta_loss"]):
        check_against_reference(
            *call(mlp_cases.problem((7, 33, 4), 17, loss=loss, weights=True, dtype=torch.float32)), backend
        )


@pytest.mark.cpu
def test_value_and_grad(monkeypatch):
    """Weights that need no gradient leave it one native call."""
    monkeypatch.setattr(_autograd.Op, "untransformed", None)
    for p in networks("mse"):
        run = fastmeta.value_and_grad(p.op("loss"), (0, 2))
        value, (of_params, dy) = run(p.params, p.x, p.y, weights=p.weights, **p.options())
        with fastmeta.backend("reference"):
            expected = values_and_grads(*mlp_calls.loss(p))
        found = [value, *(g for g in of_params if g is not None), dy]
        torch.testing.assert_close(found, [*expected[: len(found) - 1], expected[-2]])


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.cpu
def test_value_and_grad_of_weights(plain, monkeypatch):
    """In one native call, unless there is another batch for each step; labels have no gradient."""
    for p in networks():
        p = p if plain else p.with_batches(2)
        fn, tensors = mlp_calls.meta_loss(p, "scalar", 2)
        query_x, query_weights = tensors[-3], tensors[-1]
        query_y = inspect.getclosurevars(fn).nonlocals["query_y"]
        rate, options = p.steps(tensors[len(p.flat)], 2)
        run = fastmeta.value_and_grad(p.op("meta_loss"), ("query_weights", 0, "weights"))
        with monkeypatch.context() as patch:
            if plain:
                patch.setattr(_autograd.Op, "untransformed", None)
            value, (of_query, of_params, of_support) = run(
                p.params, rate, p.x, p.y, query_x, query_y, weights=p.weights, query_weights=query_weights, **options, **p.options()
            )  # fmt: skip
        expected = values_and_grads(fn, tensors)
        torch.testing.assert_close([value, of_support, of_query], [expected[0], *expected[-2:]])
        torch.testing.assert_close(list(outputs(of_params)), expected[1 : 1 + len(p.flat)])
    with pytest.raises(TypeError, match="argument weights of mlp_loss must be of tensors of floating point, got None"):
        fastmeta.value_and_grad(fastmeta.mlp_loss, "weights")([], p.x, p.y)


@everywhere
def test_weights_for_all_tasks(backend):
    for p in networks():
        weights, found = torch.randn(7, dtype=D, requires_grad=True), []
        for each in (weights, weights.expand(3, 7)):
            loss = p.op("loss")(p.params, p.x, p.y, weights=each, **p.options()).sum()
            found.append([loss, *torch.autograd.grad(loss, weights)])
        torch.testing.assert_close(*found)
        alone = [p.op("loss")(p.of_task(t), p.x[t], p.y[t], weights=weights, **p.options()) for t in range(3)]
        torch.testing.assert_close(sum(alone), found[0][0])


@pytest.mark.cpu
@pytest.mark.parametrize("name", ["loss", "grad", "hvp", "adapt", "meta_loss"])
def test_errors(name):
    for p in networks():
        more = {"hvp": (p.vectors(),), "adapt": (0.1,), "meta_loss": (0.1,)}.get(name, ())
        examples = (p.x, p.y) * (2 if name == "meta_loss" else 1)
        steps = {"steps": 1} if more and name != "hvp" else {}
        for argument in ("weights", "query_weights") if name == "meta_loss" else ("weights",):
            for error, weights, said in (
                (ValueError, torch.ones(3, 6, dtype=D), r"must have shape \[3, 7\], got \[3, 6\]"),
                (ValueError, torch.ones(3, dtype=D), r"must have shape \[7\], got \[3\]"),
                (TypeError, torch.ones(3, 7), r"must have the dtype of params\[0\], torch.float64, got torch.float32"),
                (TypeError, [1.0] * 7, "must be a tensor, got list"),
            ):
                with pytest.raises(error, match=f"{p.family}_{name}: {argument} {said}"):
                    p.op(name)(p.params, *more, *examples, **steps, **p.options(), **{argument: weights})
