"""What the integrations share: `accelerate` knows what it touches and leaves nothing behind; the recipe in plain PyTorch."""

import re
import subprocess
import sys
import threading
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

import fastmeta
from fastmeta.integrations import SUPPORTED, _accelerate, accelerate
from harness.installed_peers import PEERS, peer
from harness.places import ROOT
from harness.programs import TASKS, assert_same, maml_by_hand, net, trained, waves

PAGE = ROOT / "docs/integrations.md"


def recipe(rates):
    """The inner loop of anybody's MAML, with one line of fastmeta in it."""
    model = net()

    def meta_loss():
        total = 0
        for support_x, support_y, query_x, query_y in zip(*waves(), strict=True):
            params = dict(model.named_parameters())
            for _ in range(2):
                loss = F.mse_loss(functional_call(model, params, support_x), support_y)
                grads = torch.autograd.grad(loss, list(params.values()), create_graph=True)
                params = fastmeta.sgd_step(params, dict(zip(params, grads, strict=True)), rates)
            total = total + F.mse_loss(functional_call(model, params, query_x), query_y)
        return total / TASKS

    return trained(model.parameters(), meta_loss)


def batched():
    """The same, all tasks at once."""
    model = net()
    learner = fastmeta.MAML(model, lr=0.05, steps=2, loss="mse")
    return trained(model.parameters(), lambda: learner.loss(*waves()).mean())


def test_recipe_on_plain_pytorch():
    expected = maml_by_hand(net(), 0.05, 2)
    assert_same(recipe(0.05), expected)
    assert_same(batched(), expected)


def everything(name):
    """All that the library's classes and modules hold: {place: object}."""
    found = {}
    for path, module in sorted(sys.modules.items()):
        if path.partition(".")[0] == name:
            for attribute, value in vars(module).items():
                found[path, attribute] = value
                if isinstance(value, type) and value.__module__.partition(".")[0] == name:
                    found |= {(path, attribute, inner): v for inner, v in vars(value).items()}
    return found


def changes(name, before):
    """The places that hold something else than before."""
    now = everything(name)
    return {place for place in before.keys() | now.keys() if before.get(place) is not now.get(place)}


@pytest.fixture
def library(request):
    found = peer(request.param)
    with accelerate(found):  # imports all that it touches
        pass
    return found


@pytest.mark.parametrize("library", PEERS, indirect=True)
def test_accelerate_leaves_nothing_behind(library):
    before = everything(library.__name__)
    with accelerate(library) as entered:
        assert entered is library and changes(library.__name__, before)
    assert not changes(library.__name__, before)
    with pytest.raises(KeyError, match="of the program"), accelerate(library):
        raise KeyError("of the program")
    assert not changes(library.__name__, before)


@pytest.mark.parametrize("library", PEERS, indirect=True)
def test_accelerate_within_accelerate(library):
    """Nested, and by two threads that leave in the order in which they came."""
    before = everything(library.__name__)
    with accelerate(library):
        inside = everything(library.__name__)
        with accelerate(library):
            assert not changes(library.__name__, inside)
        assert not changes(library.__name__, inside)
    assert not changes(library.__name__, before)

    entered, leave, left = threading.Event(), threading.Event(), threading.Event()

    def first():
        with accelerate(library):
            entered.set()
            assert leave.wait(60)
        left.set()

    thread = threading.Thread(target=first)
    thread.start()
    assert entered.wait(60)
    with accelerate(library):
        leave.set()
        assert left.wait(60)
        assert changes(library.__name__, before)
    thread.join()
    assert not changes(library.__name__, before)


def test_unknown_libraries_and_versions(monkeypatch):
    with pytest.raises(TypeError, match="accelerate: peer must be a module, got str"), accelerate("higher"):
        pass
    words = "accelerate: peer must be one of learn2learn, higher, easyfsl, torchopt, got torch"
    with pytest.raises(ValueError, match=words), accelerate(torch):
        pass
    newer = ModuleType("learn2learn")
    newer.__version__ = "0.3.0"
    with (
        pytest.raises(ValueError, match=r"accelerate: learn2learn must be of version 0\.2\.0, got 0\.3\.0"),
        accelerate(newer),
    ):
        pass

    def not_installed(name):
        raise _accelerate.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(_accelerate.importlib.metadata, "version", not_installed)
    with (
        pytest.raises(ValueError, match=r"accelerate: higher must be of version 0\.2\.1, got no version"),
        accelerate(ModuleType("higher")),
    ):
        pass


def test_fastmeta_does_not_import_its_integrations_nor_they_a_peer():
    script = "import fastmeta, sys; print(sum('integrations' in name for name in sys.modules))\n"
    script += "from fastmeta.integrations import learn2learn, higher, easyfsl, torchopt\n"
    script += f"print([name for name in {PEERS} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n") == ["0", "[]", ""]


def test_the_versions_that_are_tested_are_those_that_are_known():
    listed = dict(re.findall(r"^(\w+)==(\S+)", (ROOT / "tools/harness/peers.txt").read_text(), re.M))
    listed |= dict(re.findall(r"(learn2learn)==([\d.]+)", (ROOT / "Makefile").read_text()))
    assert {name: (version,) for name, version in listed.items()} == SUPPORTED
    page = PAGE.read_text()
    for name, (version,) in SUPPORTED.items():
        assert f"`{name}` {version}" in page, name
