"""The programs of fastmeta.unroll: its gradients are those of the plain loops of examples/plain.py, in float64, and all run."""

import re
from argparse import Namespace

import distill
import hyperparameters
import maml_plus
import modulate
import pytest
import reweight
import test_time
import torch
from letters import Letters, network
from plain import WAYS

from fastmeta.data import Episodes
from harness import forks
from harness.places import ROOT

D = torch.float64


def weights(seed):
    torch.manual_seed(seed)
    return weights_of(network(3, width=8).to(D))


def weights_of(net):
    return {name: p.detach() for name, p in net.named_parameters()}


def letters(n):
    return Letters(torch.rand(n, 1, 28, 28, dtype=D), torch.arange(n) % 3)


def same(value, inputs):
    """value(way) and its gradients to the inputs, by each way."""
    inputs = list(inputs)
    found = {}
    for way in WAYS:
        loss = value(way)
        found[way] = [loss, *torch.autograd.grad(loss.sum(), inputs)]
        assert all(g.any() for g in found[way])
    for way in ("autograd", "checkpoint"):
        torch.testing.assert_close(found["unroll"], found[way], rtol=1e-9, atol=1e-12)


def test_distilled_images_and_rate():
    net, (images, labels) = network(3, width=8).to(D), letters(6)
    rate = torch.tensor(0.1, dtype=D, requires_grad=True)
    given = net, weights(0), weights(1), images.requires_grad_(), labels, rate, 4
    same(lambda way: distill.matching(way, *given), [images, rate])


def test_weights_of_examples():
    net, start = network(3, width=8).to(D), torch.zeros(5, dtype=D, requires_grad=True)
    batch, clean = letters(5), letters(3)
    same(lambda way: reweight.clean_loss(way, net, start, batch, clean, 0.1, 3), [start])


def in_float64(tensors):
    return {name: x.detach().to(D).requires_grad_() for name, x in tensors.items()}


def test_rates_and_decays_of_layers():
    net = hyperparameters.network(3, width=8).to(D)
    rates, decays = (in_float64(hyperparameters.starting_at(value, net)) for value in (0.1, 0.01))
    given = net, weights_of(net), [letters(4), letters(5)], rates, decays, letters(3)
    same(lambda way: hyperparameters.held_out_loss(way, *given), [*rates.values(), *decays.values()])


def test_a_model_that_learns_from_its_text():
    model = test_time.Reader(width=6, hidden=5, embedding=3).to(D)
    args = Namespace(chunks=4, length=7)
    chunks = test_time.chunks_at(torch.randint(test_time.VOCABULARY, (60,)), torch.tensor([0, 11, 20]), args)
    assert [list(chunk.shape) for chunk in chunks] == [[3, test_time.WINDOW + 7]] * 4
    same(lambda way: test_time.losses(way, model, chunks), model.parameters())


def test_shifts_of_a_sine_network():
    net, rates = modulate.Sines(width=8).to(D), torch.tensor([0.1, 0.2], dtype=D, requires_grad=True)
    images, places = torch.rand(3, 16, dtype=D), modulate.places_of(4).to(D)
    same(lambda way: modulate.errors(way, net, rates, images, places), [*net.parameters(), rates])


def test_a_batch_and_rates_of_each_step():
    net = maml_plus.network(3, hidden=2).to(D)
    rates = in_float64(maml_plus.rates_of(net, 0.1, 2))
    x, y = torch.rand(2, 6, 1, 28, 28, dtype=D), torch.arange(3).repeat_interleave(2).expand(2, 6)
    tasks, inputs = Episodes(x, y, 1 - x, y), [*net.parameters(), *rates.values()]
    same(lambda way: maml_plus.query_losses(way, net, rates, [True, True], tasks), inputs)
    last, every = (maml_plus.query_losses("unroll", net, rates, [first, True], tasks) for first in (False, True))
    assert not last[0].any() and every[0].all() and torch.equal(last[1], every[1])


@pytest.mark.parametrize("way", ["unroll", "autograd"])
@pytest.mark.parametrize(
    ("program", "rows"),
    [
        ("distill.py --steps 2 --classes 3 --epochs 3 --experts 1 --inner-steps 2 --eval-steps 2", 3),
        ("reweight.py --steps 5 --classes 3 --examples 20 --batch 10", 2),
        ("hyperparameters.py --steps 2 --classes 3 --inner-steps 3 --eval-nets 1", 2),
        ("maml_plus.py --steps 2 --inner-steps 2 --hidden 4 --tasks 2 --eval-tasks 4", 2),
    ],
)
def test_programs(program, rows, way):
    text = printed(program, way)
    assert len(re.findall(r"^\w+.* [\d.]+ %", text, re.M)) >= rows


def printed(program, way="unroll"):
    name, *options = program.split()
    process = forks.run(str(ROOT / "examples" / name), *options, "--way", way)
    assert process.returncode == 0, process.stderr
    assert f"by {way}" in process.stdout
    return process.stdout


def test_reading_with_steps_tells_more():
    text = printed("test_time.py --steps 12 --chunks 4 --length 32 --batch 4 --lr 0.01 --eval-texts 16")
    plain, through = (
        float(re.search(rf"^{name} .* ([\d.]+)$", text, re.M)[1]) for name in ("without steps", "trained through")
    )
    assert through < plain


def test_trained_sines_fit_images_in_a_few_steps():
    text = printed("modulate.py --steps 20 --size 28 --width 32 --batch 4 --eval-images 16")
    before, after = (float(re.search(rf"^{name} .* ([\d.]+) ± [\d.]+$", text, re.M)[1]) for name in ("no", "yes"))
    assert after > before + 1
