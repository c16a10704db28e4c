"""fastmeta.fit against the loop that it stands for, and fastmeta.evaluate against the accuracies counted by hand."""

import copy
import itertools
import math

import pytest
import torch
from torch import nn

import fastmeta
from fastmeta.data import Sinusoid, TaskSampler, sample_episodes, task_sampler

IMAGES = torch.randint(0, 256, (9, 6, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def sinusoids(seed=0):
    return TaskSampler(lambda count, generator: Sinusoid().sample(count, 5, 5, generator=generator), 4, seed=seed)


def episodes(tasks=3):
    return TaskSampler(lambda count, generator: sample_episodes(IMAGES, count, 3, 1, 2, generator=generator), tasks)


def maml():
    torch.manual_seed(3)
    return fastmeta.MAML(nn.Sequential(nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 1)), 0.05, 2, loss="mse")


def protonet():
    torch.manual_seed(3)
    net = nn.Linear(16, 5, bias=False)  # a distance knows no bias: its gradient would be rounding
    return fastmeta.ProtoNet(nn.Sequential(nn.Flatten(), net))


@pytest.mark.parametrize(("make", "sampler"), [(maml, sinusoids), (protonet, episodes)])
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.cpu
def test_fit_is_the_plain_loop(make, sampler, own):
    learner, by_hand = make(), make()
    optimiser = torch.optim.SGD(learner.parameters(), 0.1) if own else None
    of_hand = torch.optim.SGD(by_hand.parameters(), 0.1) if own else torch.optim.Adam(by_hand.parameters(), 1e-3)
    losses = fastmeta.fit(learner, sampler(), 7, optimiser=optimiser)
    expected = []
    for batch in itertools.islice(sampler(), 7):
        of_hand.zero_grad()
        loss = by_hand.loss(*batch).mean()
        loss.backward()
        of_hand.step()
        expected.append(loss.detach())
    torch.testing.assert_close(losses, torch.stack(expected), rtol=1e-4, atol=1e-5)
    for p, q in zip(learner.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


@pytest.mark.cpu
def test_callbacks_see_every_step_and_can_end_the_training():
    seen = []
    losses = fastmeta.fit(
        maml(),
        sinusoids(),
        9,
        callbacks=[lambda step, losses: step == 4, lambda step, losses: seen.append((step, losses.shape))],
    )
    assert losses.shape == (4,)
    assert seen == [(step, (4,)) for step in range(1, 5)]


@pytest.mark.parametrize(("make", "sampler"), [(maml, sinusoids), (protonet, episodes)])
@pytest.mark.parametrize("at", [1, 2, 65, 70])
@pytest.mark.cpu
def test_a_state_taken_in_a_callback_goes_on_with_the_same_bits(make, sampler, at):
    """Though many meta-batches were drawn at once: step 1 is drawn alone, then 64 at a time."""
    learner, tasks, kept = make(), sampler(), {}
    optimiser = torch.optim.Adam(learner.parameters())

    def save(step, losses):
        if step == at:
            states = learner.state_dict(), optimiser.state_dict(), tasks.state_dict()
            kept["states"] = copy.deepcopy(states)

    losses = fastmeta.fit(learner, tasks, 75, optimiser=optimiser, callbacks=[save])
    again, more = make(), sampler(9) if sampler is sinusoids else sampler()
    resumed = torch.optim.Adam(again.parameters())
    for part, state in zip((again, resumed, more), kept["states"], strict=True):
        part.load_state_dict(state)
    assert more.state_dict()["next"] == at * more.tasks
    left = fastmeta.fit(again, more, 75 - at, optimiser=resumed)
    assert torch.equal(left, losses[at:])
    assert all(map(torch.equal, again.parameters(), learner.parameters()))
    assert more.state_dict() == tasks.state_dict() == {"seed": 0, "next": 75 * tasks.tasks}


class Around(nn.Module):
    """As DistributedDataParallel: its own call, and no `backward`."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *batch):
        return self.module(*batch)


@pytest.mark.cpu
def test_fit_takes_a_module_around_a_learner():
    learner, within = maml(), maml()
    losses = fastmeta.fit(learner, sinusoids(), 5)
    seen = []
    found = fastmeta.fit(
        Around(within), sinusoids(), 5, callbacks=[lambda _, losses: seen.append(losses.requires_grad)]
    )
    torch.testing.assert_close(found, losses)
    torch.testing.assert_close(list(within.parameters()), list(learner.parameters()))
    assert seen == [False] * 5


@pytest.mark.cpu
@pytest.mark.parametrize(("room", "drawn"), [(2**26, [4, 256]), (1, [4, 4, 4, 4]), (500, [4, 12])])
def test_large_meta_batches_are_drawn_a_few_at_a_time(monkeypatch, room, drawn):
    """One here has 4 tasks of 5 examples, two numbers of 4 bytes each: 160 bytes."""
    counts = []

    def draw(count, generator):
        counts.append(count)
        return Sinusoid().sample(count, 2, 3, generator=generator)

    monkeypatch.setattr(task_sampler, "AT_ONCE", room)
    fastmeta.fit(maml(), TaskSampler(draw, 4), 4)
    assert counts == drawn


@pytest.mark.cpu
def test_evaluate_counts_right_answers():
    learner = protonet()
    found = fastmeta.evaluate(learner, episodes(tasks=4), 10)
    batches = list(itertools.islice(episodes(tasks=4), 3))
    shares = torch.cat([(learner(*b[:3]).argmax(-1) == b[3]).float().mean(1) for b in batches])[:10].double()
    assert found.mean == pytest.approx(shares.mean().item())
    assert found.interval == pytest.approx(1.96 * shares.std().item() / math.sqrt(10))
    assert f"{found:.1f}" == f"{found.mean:.1f} ± {found.interval:.1f}"


@pytest.mark.cpu
def test_evaluate_leaves_out_ignored_labels_and_takes_losses():
    learner, (batch,) = protonet(), itertools.islice(episodes(tasks=2), 1)
    ignored = batch._replace(query_y=batch.query_y.clone())
    ignored.query_y[:, 0] = -100
    right = (learner(*batch[:3]).argmax(-1) == batch.query_y)[:, 1:].double().mean()
    assert fastmeta.evaluate(learner, [ignored], 2).mean == pytest.approx(right.item())
    learner, (batch,) = maml(), itertools.islice(sinusoids(), 1)
    assert fastmeta.evaluate(learner, [batch], 4).mean == pytest.approx(learner.loss(*batch).mean().item())


@pytest.mark.cpu
def test_errors():
    frozen = copy.deepcopy(protonet()).requires_grad_(False)
    for wrong, error, words in (
        (
            lambda: fastmeta.fit(nn.Linear(1, 1), sinusoids(), 1),
            TypeError,
            "fit: learner must be a learner of fastmeta, or a module around one, got Linear",
        ),
        (lambda: fastmeta.fit(maml(), sinusoids(), 0), ValueError, "fit: steps must be at least 1"),
        (lambda: fastmeta.fit(frozen, episodes(), 1), ValueError, "fit: learner must have parameters that are trained"),
        (
            lambda: fastmeta.fit(maml(), itertools.islice(sinusoids(), 2), 3),
            ValueError,
            "fit: sampler must give 3 meta-batches",
        ),
        (lambda: fastmeta.evaluate(maml(), sinusoids(), 1), ValueError, "evaluate: episodes must be at least 2"),
        (
            lambda: fastmeta.evaluate(maml(), itertools.islice(sinusoids(), 1), 9),
            ValueError,
            "evaluate: sampler must give 9",
        ),
    ):
        with pytest.raises(error, match=words):
            wrong()
