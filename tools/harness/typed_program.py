"""What a user writes, for `mypy --strict` (tests/build/test_types.py): every public name has a type, and none of them is Any."""
# mypy: disallow-any-expr

from collections.abc import Sequence
from typing import assert_type

import torch
from torch import Tensor, nn

import fastmeta
from fastmeta.data import (
    Episodes,
    Glyphs,
    ImageFolder,
    Omniglot,
    Sinusoid,
    TaskGenerator,
    TaskSampler,
    image_folder,
    sample_episodes,
)
from fastmeta.types import Activation, Backend, ConvBlock, Curvature, Draw, Loss, Metric, Rate, Reduction, Sampler


def distances(x: Tensor, y: Tensor, metric: Metric, reduction: Reduction) -> None:
    centres = assert_type(fastmeta.prototypes(x, y, 5), Tensor)
    assert_type(fastmeta.proto_log_softmax(x, centres, metric=metric, temperature=0.5), Tensor)
    assert_type(fastmeta.proto_loss(x, centres, y, metric=metric, temperature=x, reduction=reduction), Tensor)
    assert_type(fastmeta.proto_loss(x, centres, y, exclude=y, margin=0.1, target_distance=x), Tensor)
    assert_type(fastmeta.proto_loss(x, centres, y, bias=x, classes=y, label_smoothing=0.1), Tensor)
    assert_type(fastmeta.proto_loss(x, centres, y, return_accuracy=True), tuple[Tensor, Tensor])
    assert_type(fastmeta.proto_loss_loo(x, y, 5, metric=metric, reduction=reduction), Tensor)
    assert_type(fastmeta.symmetric_loss(x, x, metric="cosine", temperature=x), Tensor)
    assert_type(fastmeta.heads.SupCon(temperature=0.1), fastmeta.heads.SupCon)
    assert_type(fastmeta.ragged.proto_loss(x, x, y, [3, 4], y, metric="cosine"), Tensor)
    assert_type(fastmeta.ProtoNet(nn.Flatten()).ragged([x], [y], [x]), list[Tensor])
    assert_type(fastmeta.ProtoNet(nn.Flatten()).ragged_loss([x], [y], [x], [y]), Tensor)
    assert_type(fastmeta.matching_log_probs(x, x, y, 5, metric=metric), Tensor)
    assert_type(fastmeta.task_conv2d(x, x, None, stride=2, padding=1), Tensor)


def perceptron(w: Tensor, b: Tensor, x: Tensor, y: Tensor, lr: Rate, activation: Activation, loss: Loss) -> None:
    """What comes back is None only where the parameters can be."""
    assert_type(fastmeta.mlp_forward([w, None], x, activation=activation, residual_norm=True), Tensor)
    assert_type(fastmeta.mlp_loss([w, b], x, y, activation=activation, loss=loss), Tensor)
    assert_type(fastmeta.mlp_meta_loss([w, b], lr, x, y, x, y, steps=3, loss=loss, first_order=True), Tensor)
    assert_type(fastmeta.mlp_meta_loss([w, b], lr, x, y, x, y, steps=3, weights=x, query_weights=None), Tensor)
    assert_type(fastmeta.mlp_grad([w, b], x, y, loss=loss), tuple[Tensor, list[Tensor]])
    assert_type(fastmeta.mlp_grad([w, None], x, y, loss=loss), tuple[Tensor, list[Tensor | None]])
    assert_type(fastmeta.mlp_adapt([w, b], lr, x, y, steps=3), list[Tensor])
    assert_type(fastmeta.mlp_adapt((w, None), lr, x, y, steps=3), list[Tensor | None])
    adam = fastmeta.Adam([0.1, None])
    assert_type(fastmeta.mlp_adapt([w, b], None, x, y, steps=3, batch_per_step=True, optimiser=adam), list[Tensor])
    curvature: Curvature = "ggn"
    assert_type(fastmeta.mlp_hvp([w, b], [w, b], x, y, curvature=curvature), list[Tensor])
    assert_type(fastmeta.mlp_hvp([w, None], [w, None], x, y), list[Tensor | None])


def convolutional(w: Tensor, b: Tensor, x: Tensor, y: Tensor, lr: Rate, loss: Loss) -> None:
    blocks: list[ConvBlock] = [fastmeta.ConvBlock(stride=2, norm=4)]
    params, partly = [w, b, b, b, w, b], [w, None, b, b, w, None]
    assert_type(fastmeta.conv_forward(params, x, blocks=blocks), Tensor)
    assert_type(fastmeta.conv_loss(partly, x, y, blocks=blocks, loss=loss), Tensor)
    assert_type(fastmeta.conv_meta_loss(params, lr, x, y, x, y, blocks=blocks, steps=3, first_order=True), Tensor)
    assert_type(fastmeta.conv_grad(params, x, y, blocks=blocks), tuple[Tensor, list[Tensor]])
    assert_type(fastmeta.conv_adapt(partly, lr, x, y, blocks=blocks, steps=3), list[Tensor | None])
    assert_type(fastmeta.conv_hvp(params, params, x, y, blocks=blocks, curvature="ggn"), list[Tensor])


def trees(x: Tensor, model: nn.Module, params: Sequence[Tensor], lr: Rate) -> None:
    """In the structure that went in."""
    assert_type(fastmeta.sgd_step(x, x, 0.1), Tensor)
    assert_type(fastmeta.momentum_step(x, x, x, 0.1, momentum=0.9), tuple[Tensor, Tensor])
    assert_type(fastmeta.adam_step([x], [x], [x], [x], [0.1], step=1), tuple[list[Tensor], list[Tensor], list[Tensor]])
    assert_type(fastmeta.sgd_step([x], [x], [0.1]), list[Tensor])
    assert_type(fastmeta.sgd_step((x, x), (x, x), (x, None)), tuple[Tensor, ...])
    assert_type(fastmeta.sgd_step({"w": x}, {"w": x}, {"w": x}), dict[str, Tensor])
    assert_type(fastmeta.sgd_step(params, torch.autograd.grad(x, params), lr), Sequence[Tensor])
    named = dict(model.named_parameters())
    assert_type(fastmeta.sgd_step(named, {"w": x}, lr), dict[str, Tensor])
    assert_type(fastmeta.hvp(torch.sum, x, x), Tensor)
    assert_type(fastmeta.hvp(lambda p: p["w"].sum(), named, {"w": x}), dict[str, Tensor])


def total(params: dict[str, Tensor], x: Tensor) -> Tensor:
    return params["w"].mul(x).sum()


def bias(params: dict[str, Tensor]) -> Tensor:
    return params["bias"].sum()


def inner_loops(x: Tensor, named: dict[str, Tensor], net: nn.Linear) -> None:
    after, state = fastmeta.unroll(total, named, [(x,)], optimiser=fastmeta.SGD({"w": x}, momentum=0.9))
    assert_type(after, dict[str, Tensor])
    found = fastmeta.unroll(
        (net, "mse"), net, (x, x), steps=3, optimiser=fastmeta.Adam(0.1, (0.9, x)), state=state, keep="sqrt",
        outer=[None, None, bias],
    )  # fmt: skip
    assert_type(found, tuple[Tensor, dict[str, object]])


class Scaled(fastmeta.MAML):
    """A learner of one's own."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, lr=nn.Parameter(torch.tensor(0.1)), steps=5, adapt=["0"], loss_weights=[0, 0, 1, 1, 1])

    def loss(  # type: ignore[override]  # without return_outputs
        self, support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor
    ) -> Tensor:
        return 2 * super().loss(support_x, support_y, query_x, query_y)


def learners(x: Tensor, y: Tensor, body: nn.Sequential) -> None:
    head = nn.Linear(5, 5)
    for learner in (
        fastmeta.ANIL(body, head, steps=2),
        fastmeta.IMAML(body, 0.1, 5, strength=2.0),
        fastmeta.LEO(64, num_classes=5),
        fastmeta.MAML(body, optimiser=fastmeta.SGD(0.1, momentum=0.9)),
        fastmeta.MAML(body, loss=nn.functional.mse_loss, task_chunk=4),
        fastmeta.MahalanobisNet(body, beta=0.5),
        fastmeta.MatchingNet(body, context=fastmeta.FullContext(64), metric="cosine"),
        fastmeta.MetaSGD(body, loss="mse"),
        fastmeta.ProtoMAML(body, 5),
        fastmeta.ProtoNet(body, temperature=nn.Parameter(torch.ones(1))),
        fastmeta.Reptile(body, optimiser="adam"),
        Scaled(body),
    ):
        assert_type(learner(x, y, x), Tensor)
        assert_type(learner(x, y, x, query_y=y), Tensor)
        assert_type(learner.loss(x, y, x, y), Tensor)
        assert_type(learner.backward(x, y, x, y), Tensor)
        assert_type(learner.backward(x, y, x, y, return_outputs=True), tuple[Tensor, Tensor])
        assert_type(fastmeta.fit(learner, [(x, y, x, y)], 1, callbacks=[lambda step, losses: step > 1]), Tensor)
        assert_type(fastmeta.graphed(learner, torch.optim.SGD(learner.parameters()), [(x, y, x, y)]).loss, Tensor)
        assert_type(fastmeta.evaluate(learner, [(x, y, x, y)], 2), fastmeta.Estimate)
    assert_type(fastmeta.FullContext(64)(x, x), tuple[Tensor, Tensor])
    assert_type(fastmeta.MAML(body).rates(), float | Tensor | list[Tensor])
    assert_type(fastmeta.MetaSGD(body).rates(), list[Tensor])
    assert_type(fastmeta.MAML(body).adapted, list[str])
    assert_type(fastmeta.use_batch_statistics(body), nn.Sequential)


def gradients(query: Tensor, centres: Tensor, targets: Tensor) -> None:
    losses, of_both = fastmeta.value_and_grad(fastmeta.proto_loss, argnums=(0, 1))(query, centres, targets)
    assert_type(losses, Tensor)
    assert_type(of_both, tuple[Tensor | list[Tensor | None], ...])
    assert_type(fastmeta.value_and_grad(fastmeta.proto_loss)(query, centres, targets)[1], Tensor | list[Tensor | None])


def waves(count: int, generator: TaskGenerator) -> Episodes:
    return assert_type(Sinusoid().sample(count, 10, 10, generator=generator), Episodes)


def letters(images: Tensor) -> Draw:
    return lambda count, generator: sample_episodes(images, count, 5, 1, 15, generator=generator)


def train(learner: fastmeta.MAML, sampler: Sampler, name: Backend) -> None:
    optimiser = torch.optim.Adam(learner.parameters())
    with fastmeta.backend(name):
        for episodes in sampler:
            loss = assert_type(learner.loss(*episodes.to("cpu")).mean(), Tensor)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            support_x, _, _, query_y = episodes
            assert_type((support_x, query_y), tuple[Tensor, Tensor])


train(Scaled(nn.Linear(1, 1)), TaskSampler(waves, tasks=4), "reference")
train(fastmeta.MetaSGD(nn.Linear(1, 1)), TaskSampler(letters(Glyphs("train").images), tasks=4), "auto")
assert_type(Omniglot("omniglot").images, Tensor)
first, others = assert_type(image_folder("flowers", 84).split(80), tuple[ImageFolder, ImageFolder])
assert_type(sample_episodes(first.images, 4, 5, 1, 15, counts=others.counts), Episodes)

# What is wrong is an error.
fastmeta.proto_loss(torch.ones(1, 2), torch.ones(1, 2), torch.zeros(1), metric="cosin")  # type: ignore[call-overload]
fastmeta.MAML(nn.Linear(1, 1), loss="mae")  # type: ignore[arg-type]
fastmeta.backend("cuda")  # type: ignore[arg-type]
train(fastmeta.MAML(nn.Linear(1, 1)), [waves(4, TaskGenerator(0, 0, 4))], "auto")  # type: ignore[arg-type]
TaskSampler(lambda count: waves(count, TaskGenerator(0, 0, count)), tasks=4)  # type: ignore[arg-type, misc]
