"""Every function of the integrations says what is wrong with an argument of a wrong kind, and then works as before."""

import re

import pytest
import torch
from torch import nn

from fastmeta.integrations import easyfsl, higher, learn2learn, torchopt

WRONG = [None, 3, "x", [1], {}, object(), torch.ones(2), 0.5]
SAID = re.compile(r"^[\w.]+: .* must .*, got ", re.S)


def linear():
    return nn.Linear(2, 2)


def sgd():
    return torch.optim.SGD(linear().parameters(), lr=0.1)


def of_head():
    return torch.ones(2, 3), torch.tensor([0, 1])


def on_y():
    y = torch.zeros(2, requires_grad=True)
    return torch.optim.SGD([y], lr=0.1), [y]


def inner():
    model = linear()
    return model, torch.optim.SGD(model.parameters(), lr=0.1), None, True, {"lr": [0.1]}, True


def innerloop_ctx(*arguments):
    with higher.innerloop_ctx(*arguments):
        pass


def a_state():
    model = linear()
    return model, torchopt.extract_state_dict(model)


l2l, nones = learn2learn, [None, None]
CALLS = [
    (l2l.clone_module, lambda: (linear(),)),
    (l2l.update_module, lambda: (linear(), nones)),
    (l2l.detach_module, lambda: (linear(),)),
    (l2l.clone_parameters, lambda: ([torch.ones(1)],)),
    (l2l.clone_named_parameters, lambda: ({"a": torch.ones(1)},)),
    (l2l.accuracy, lambda: (torch.ones(2, 3), torch.zeros(2))),
    (l2l.algorithms.MAML, lambda: (linear(), 0.1)),
    (l2l.algorithms.MetaSGD, lambda: (linear(), 0.1)),
    (l2l.algorithms.maml_update, lambda: (linear(), 0.1, nones)),
    (l2l.algorithms.meta_sgd_update, lambda: (linear(), [0.1, 0.1], nones)),
    (l2l.nn.PrototypicalClassifier, of_head),
    (l2l.nn.compute_prototypes, of_head),
    (l2l.nn.Lambda, lambda: (torch.neg,)),
    (l2l.nn.Scale, lambda: (2, 0.5)),
    (l2l.nn.freeze, lambda: (linear(),)),
    (higher.monkeypatch, lambda: (linear(),)),
    (higher.get_diff_optim, on_y),
    (higher.create_diff_optim, lambda: (torch.optim.SGD, {"lr": 0.1}, [torch.ones(1)])),
    (higher.register_optim, lambda: (torch.optim.Rprop, higher.optim.DifferentiableSGD)),
    (higher.optim.get_trainable_opt_params, lambda: (sgd(),)),
    (higher.optim.apply_trainable_opt_params, lambda: (sgd(), {"lr": [0.1]})),
    (higher.utils.get_func_params, lambda: (linear(),)),
    (innerloop_ctx, inner),
    (torchopt.MetaSGD, lambda: (linear(), 0.1, 0.0, 0.0)),
    (torchopt.MetaAdam, lambda: (linear(), 0.1, (0.9, 0.99), 1e-8, 0.0)),
    (torchopt.extract_state_dict, lambda: (linear(),)),
    (torchopt.recover_state_dict, a_state),
    (easyfsl.methods.PrototypicalNetworks, lambda: (None, False, None, None)),
    (easyfsl.methods.utils.compute_prototypes, of_head),
]


@pytest.mark.parametrize(("call", "arguments"), CALLS, ids=[call.__name__ for call, _ in CALLS])
def test_wrong_arguments(call, arguments):
    refused = 0
    for i, right in enumerate(arguments()):
        for wrong in [] if call is innerloop_ctx and right is None else WRONG:  # a device: torch's own words
            given = list(arguments())
            given[i] = wrong
            try:
                call(*given)
            except (TypeError, ValueError, NotImplementedError) as error:
                assert SAID.match(str(error)), (i, wrong, error)
                refused += 1
    assert refused
    call(*arguments())
