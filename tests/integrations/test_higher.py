"""higher's names one by one: the copy of a model, optimisers and their states, and errors."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastmeta.integrations import accelerate
from fastmeta.integrations import higher as ours
from harness.installed_peers import peer
from harness.programs import net


def test_parameters_given_to_the_copy():
    """In any order of objects: the same tensor for two parameters, and back; a setter; what `to` makes of them."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).double()
    fmodel = ours.monkeypatch(model)
    x, start = torch.randn(3, 2).double(), list(fmodel.parameters())
    weight, bias = torch.randn(2, 2).double().requires_grad_(), torch.randn(2).double().requires_grad_()
    both = fmodel(x, params=[weight, bias, weight, bias])
    torch.testing.assert_close(both, F.linear(F.linear(x, weight, bias), weight, bias))
    fmodel.fast_params = [p + 1 for p in start]
    assert [p is q for p, q in zip(fmodel.parameters(time=0), start, strict=True)] == [True] * 4
    torch.testing.assert_close(fmodel(x), torch.func.functional_call(model, dict(zip(
        [name for name, _ in model.named_parameters()], [p + 1 for p in start], strict=True)), x))  # fmt: skip
    torch.testing.assert_close(fmodel[0](x), F.linear(x, start[0] + 1, start[1] + 1))
    fmodel.float()
    assert {p.dtype for p in fmodel.parameters()} == {torch.float32}
    assert torch.autograd.grad(fmodel(x.float()).sum(), start[0])[0].dtype == torch.float64
    assert fmodel.cpu() is fmodel
    fmodel.track_higher_grads = False
    fmodel.fast_params = [p.float() for p in start]
    assert len(fmodel._fast_params) == 1


def test_hooks_of_the_copy_are_its_own():
    model = nn.Linear(2, 2)
    model.register_forward_hook(lambda module, inputs, output: output + 1)
    fmodel = ours.monkeypatch(model)
    torch.testing.assert_close(fmodel(torch.ones(2)), model(torch.ones(2)))
    fmodel.register_forward_hook(lambda module, inputs, output: output * 0)
    assert model(torch.ones(2)).any() and not fmodel(torch.ones(2)).any()


@pytest.mark.parametrize(("kind", "options"), [(torch.optim.SGD, {"momentum": 0.9}), (torch.optim.Adam, {})])
def test_state_starts_as_the_optimisers_and_stays_apart(kind, options):
    model = net()
    inner = kind(model.parameters(), lr=0.01, **options)
    x = torch.ones(2, 1).double()
    model(x).square().sum().backward()
    inner.step()
    name = "exp_avg" if kind is torch.optim.Adam else "momentum_buffer"
    before = [inner.state[p][name].clone() for p in model.parameters()]
    with ours.innerloop_ctx(model, inner) as (fmodel, diffopt):
        torch.testing.assert_close([diffopt.state[0][i][name] for i in range(6)], before)
        diffopt.step(fmodel(x).square().sum())
        stepped = list(fmodel.parameters())
        assert diffopt.state[0][0][name].grad_fn is not None
        assert [group["lr"] for group in diffopt.param_groups] == [0.01] and len(diffopt.param_groups[0]["params"]) == 6
    torch.testing.assert_close([inner.state[p][name] for p in model.parameters()], before)
    model.zero_grad()
    model(x).square().sum().backward()
    inner.step()
    torch.testing.assert_close(stepped, list(model.parameters()), atol=1e-6, rtol=1e-6)  # torch's own step


def test_optimisers_without_a_model():
    y = torch.zeros(3).double().requires_grad_()
    energy = torch.randn(3).double().requires_grad_()
    for diffopt in (
        ours.get_diff_optim(torch.optim.SGD([y], lr=0.1), [y], device=y.device),
        ours.create_diff_optim(torch.optim.SGD, {"lr": 0.1}, params=[y]),
        ours.create_diff_optim(torch.optim.SGD, {"lr": 1.0}, params=[{"params": [y], "lr": 0.1}]),
    ):
        (after,) = diffopt.step((y - energy).square().sum(), params=[y])
        torch.testing.assert_close(after, 0.2 * energy)
        torch.testing.assert_close(torch.autograd.grad(after.sum(), energy)[0], torch.full((3,), 0.2).double())
        with pytest.raises(ValueError, match="step: params must be given to an optimiser without a model, got none"):
            diffopt.step(y.sum())
        with pytest.raises(ValueError, match="step: params must have one entry for each of 1 parameters, got 2"):
            diffopt.step(y.sum(), params=[y, y])


def test_an_optimiser_of_the_users_own():
    class Signs(torch.optim.SGD):
        pass

    class DifferentiableSigns(ours.optim.DifferentiableOptimizer):
        def _update(self, grouped_grads, **kwargs):
            for group, grads in zip(self.param_groups, grouped_grads, strict=True):
                for i, (p, g) in enumerate(zip(group["params"], grads, strict=True)):
                    group["params"][i] = p - group["lr"] * g.sign()

    model = net()
    inner = Signs(model.parameters(), lr=0.5)
    with pytest.raises(TypeError, match="or registered, got Signs"):
        ours.get_diff_optim(inner, model.parameters())
    ours.register_optim(Signs, DifferentiableSigns)
    with ours.innerloop_ctx(model, inner) as (fmodel, diffopt):
        start = list(fmodel.parameters())
        after = diffopt.step(sum(p.sum() for p in start))
    torch.testing.assert_close(after, [p - 0.5 for p in start])
    with pytest.raises(TypeError, match="register_optim: diff_optim_type must be a DifferentiableOptimizer"):
        ours.register_optim(Signs, Signs)


def test_learned_options_and_back():
    model = net()
    inner = torch.optim.Adam(model.parameters(), lr=0.05, betas=(0.5, 0.9))
    override = ours.optim.get_trainable_opt_params(inner)
    x = torch.ones(2, 1).double()
    with ours.innerloop_ctx(model, inner, override=override) as (fmodel, diffopt):
        for _ in range(2):
            diffopt.step(fmodel(x).square().sum(), grad_callback=lambda grads: [2 * g for g in grads])
        learned = [*override["lr"], *override["betas"][0]]
        found = torch.autograd.grad(fmodel(x).sum(), learned)

    def numeric(i, eps):
        options = [0.05, 0.5, 0.9]
        options[i] += eps
        other = torch.optim.Adam(model.parameters(), lr=options[0], betas=tuple(options[1:]))
        with ours.innerloop_ctx(model, other) as (fmodel, diffopt):
            for _ in range(2):
                diffopt.step(fmodel(x).square().sum(), grad_callback=lambda grads: [2 * g for g in grads])
            return fmodel(x).sum().item()

    for i, g in enumerate(found):
        assert abs(g.item() - (numeric(i, 1e-6) - numeric(i, -1e-6)) / 2e-6) < 1e-4
    ours.optim.apply_trainable_opt_params(inner, {"lr": [torch.tensor(0.25)]})
    assert inner.param_groups[0]["lr"] == 0.25
    assert ours.utils.flatten({"a": [1, (2, 3)]}) == [1, 2, 3]
    assert all(p.is_leaf for p in ours.utils.get_func_params(model))


def test_errors():
    model = net()
    enter = lambda opt, **options: ours.innerloop_ctx(model, opt, **options).__enter__()  # noqa: E731
    words = (
        "innerloop_ctx: opt must be a torch.optim.SGD, Adam or AdamW, one that an installed higher knows, or registered"
    )
    with pytest.raises(TypeError, match=f"{words}, got LBFGS"):
        enter(torch.optim.LBFGS(model.parameters()))
    with pytest.raises(TypeError, match=f"{words}, got float"):
        enter(0.1)
    for kind in (torch.optim.SGD, torch.optim.Adam):
        with pytest.raises(
            ValueError, match=f"Differentiable{kind.__name__}: maximize.* must not be set, got maximize=True"
        ):
            enter(kind(model.parameters(), lr=0.1, maximize=True))
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="got maximize=True"):
        enter(sgd, override={"maximize": [True]})
    with pytest.raises(ValueError, match=r"override\['lr'\] must have 1 or 1 entries, got 2"):
        enter(sgd, override={"lr": [0.1, 0.2]})
    with pytest.raises(TypeError, match=r"override\['lr'\] must be a sequence, got float"):
        enter(sgd, override={"lr": 0.1})
    with pytest.raises(ValueError, match="innerloop_ctx: opt must hold parameters of model, got 6 others"):
        enter(torch.optim.SGD(net().parameters(), lr=0.1))
    fmodel, diffopt = enter(sgd)
    with pytest.raises(ValueError, match="monkeypatch: module must be a plain model, got FunctionalSequential"):
        ours.monkeypatch(fmodel)
    with pytest.raises(TypeError, match="monkeypatch: module must be a torch.nn.Module, got int"):
        ours.monkeypatch(3)
    with pytest.raises(ValueError, match="update_params: params must have one entry for each of 6 parameters, got 1"):
        fmodel(torch.ones(1, 1).double(), params=[torch.ones(1)])
    with pytest.raises(TypeError, match=r"update_params: params\[0\] must be a tensor, got NoneType"):
        fmodel.update_params([None] * 6)
    with pytest.raises(TypeError, match="step: loss must be a tensor, got float"):
        diffopt.step(1.0)
    with pytest.raises(
        ValueError, match="grad_callback: the gradients must have one entry for each of the 6 parameters, got 0"
    ):
        diffopt.step(fmodel(torch.ones(1, 1).double()).sum(), grad_callback=lambda grads: [])
    with pytest.raises(ValueError, match="reference_params must be the 6 parameters of the model, got 1"):
        ours.get_diff_optim(sgd, list(model.parameters())[:1], fmodel)
    with pytest.raises(TypeError, match="fmodel must be what monkeypatch returns, got Sequential"):
        ours.get_diff_optim(sgd, model.parameters(), model)
    with pytest.raises(TypeError, match="track_higher_grads: the value must be True or False, got int"):
        fmodel.track_higher_grads = 1
    with pytest.raises(ValueError, match="create_diff_optim: fmodel or params must be given, got none"):
        ours.create_diff_optim(torch.optim.SGD)
    with pytest.raises(AttributeError, match="higher.patch: the name must be one .* got no_such_patch"):
        ours.patch.no_such_patch  # noqa: B018


def adapted(higher, model, inner, **options):
    """The parameters after two steps."""
    x, y = torch.linspace(-1, 1, 5).double()[:, None], torch.linspace(0, 1, 5).double()[:, None]
    with higher.innerloop_ctx(model, inner, **options) as (fmodel, diffopt):
        for _ in range(2):
            diffopt.step(F.mse_loss(fmodel(x), y))
        return fmodel, list(fmodel.parameters())


def test_accelerated_momentum_is_the_peers_own():
    higher = peer("higher")
    model = net()
    inner = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    _, expected = adapted(higher, model, inner)
    with accelerate(higher):
        _, found = adapted(higher, model, inner)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("copy", [True, False])
def test_a_part_of_the_parameters_frozen_ones_and_evaluation(copy):
    model = net()
    model[2].requires_grad_(False)
    before = [p.detach().clone() for p in model.parameters()]
    inner = torch.optim.SGD([*model[0].parameters(), *model[2].parameters()], lr=0.1)
    fmodel, after = adapted(ours, model, inner, track_higher_grads=False, copy_initial_weights=copy)
    changed = [not torch.equal(a, b) for a, b in zip(after, before, strict=True)]
    assert changed == [True, True, False, False, False, False]
    assert [p.requires_grad for p in after] == [True, True, False, False, True, True]
    assert all(p.is_leaf for p in after)
    assert next(fmodel.parameters(time=0)) is after[0]  # earlier ones are not kept
    for p, b in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, b)
    with pytest.raises(
        ValueError, match="parameters: time must be None, 0 or -1 unless track_higher_grads is True, got 1"
    ):
        fmodel.parameters(time=1)
    with pytest.raises(RuntimeError, match="init_fast_params: track_higher_grads must be True, got False"):
        fmodel.init_fast_params  # noqa: B018


@pytest.mark.cpu  # cuDNN's LSTM has no second derivative
def test_the_copy_is_a_model_of_its_own():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2), nn.LSTM(2, 2)).double()
    model[1].bias = None
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(4, 2).double()
    with ours.innerloop_ctx(model, inner, device=torch.device(x.device)) as (fmodel, diffopt):
        assert isinstance(fmodel, nn.Sequential) and type(fmodel).__name__ == "FunctionalSequential"
        assert list(fmodel.state_dict()) == list(model.state_dict())
        first = fmodel(x)[0]
        diffopt.step(first.square().sum(), grad_callback=lambda grads: [2 * g for g in grads])
        start, now = list(fmodel.parameters(time=0)), list(fmodel.parameters())
        assert fmodel.init_fast_params == start and fmodel.fast_params == now
        grads = torch.autograd.grad(first.square().sum(), start)
        torch.testing.assert_close(now, [p - 0.2 * g for p, g in zip(start, grads, strict=True)])
        torch.testing.assert_close(fmodel(x, params=start)[0], first)
    assert model[0].num_batches_tracked == 0  # buffers are copies
