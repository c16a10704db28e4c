"""What the integrations share: `accelerate` knows what it touches and leaves nothing behind."""

import re
import subprocess
import sys
import threading
from types import ModuleType

import pytest
import torch

from fastmeta.integrations import SUPPORTED, _accelerate, accelerate
from harness.installed_peers import PEERS, peer
from harness.places import ROOT

PAGE = ROOT / "docs/integrations.md"


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
    monkeypatch.setattr(_accelerate, "_installed", _accelerate._installed.__wrapped__)  # without what it remembers
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
