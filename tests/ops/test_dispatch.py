"""The choice of backend, the extension, and what the package says of itself."""

import contextvars
import os
import sys
import threading
from types import SimpleNamespace

import pytest
import torch

import fastmeta
from fastmeta import _C, _check, _dispatch, _ext, info
from harness import forks
from harness.cases import BACKENDS, VARIANTS, case
from harness.compare import values_and_grads


def run(code, **env):
    return forks.run("-c", code, env=os.environ | env)


def assert_ext_equals_reference(op):
    """Values and gradients in float64."""
    c = case(op)
    found = []
    for name in ("ext", "reference"):
        with fastmeta.backend(name):
            found.append(values_and_grads(c.fn, c.tensors))
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.cpu
def test_a_forced_backend_never_falls_back():
    with (
        fastmeta.backend("triton"),
        pytest.raises(RuntimeError, match=r"mlp_loss: a backend must be able to run on cpu, got\n  triton: "),
    ):
        case("mlp_loss").fn(*case("mlp_loss").tensors)


def test_blocks_nest_and_hold_for_their_own_thread():
    seen = {}
    with fastmeta.backend("reference"):
        with fastmeta.backend("ext"):
            seen["inner"] = _dispatch._forced.get()
        seen["outer"], copied = _dispatch._forced.get(), contextvars.copy_context()
        for name, run_in in (("thread", lambda look: look()), ("copied", copied.run)):
            look = lambda name=name: seen.update({name: _dispatch.forced()})  # noqa: E731
            thread = threading.Thread(target=run_in, args=(look,))
            thread.start()
            thread.join()
    assert seen == {"inner": "ext", "outer": "reference", "thread": "auto", "copied": "reference"}


def test_environment_variable():
    code = "import fastmeta._dispatch as d; print(d._forced.get())"
    assert run(code, FASTMETA_BACKEND="reference").stdout.strip() == "reference"
    assert "backend must be one of" in run(code, FASTMETA_BACKEND="nonsense").stderr


def test_the_first_call_of_a_process_on_the_reference():
    """Labels are looked at by native code, which must know torch's tensors by then."""
    code = (
        "import torch, fastmeta\n"
        "print(fastmeta.prototypes(torch.ones(4, 2), torch.tensor([0, 1, 0, 1]), 2).sum().item())"
    )
    done = run(code, FASTMETA_BACKEND="reference")
    assert done.stdout.strip() == "4.0", done.stderr


def test_native_kernels_are_the_default_on_a_cpu():
    for op in ("prototypes", "proto_loss", "sgd_step", "adam_step", "mlp_meta_loss"):
        assert _dispatch.choose(op, torch.device("cpu"), "auto", (), (0, 0, 0, 0), ()) == "ext"


def test_a_kernels_limit_is_passed_over_by_auto_and_told_by_a_forced_backend():
    deep = [t for _ in range(_C.max_layers + 1) for t in (torch.randn(3, 3), torch.randn(3))]
    x, y = torch.randn(2, 4, 3), torch.randint(0, 3, (2, 4))
    loss = fastmeta.mlp_meta_loss(deep, 0.1, x, y, x, y, steps=1)
    with fastmeta.backend("reference"):
        assert torch.equal(loss, fastmeta.mlp_meta_loss(deep, 0.1, x, y, x, y, steps=1))
    with fastmeta.backend("ext"), pytest.raises(RuntimeError, match="ext: takes at most 8 layers, got 9"):
        fastmeta.mlp_meta_loss(deep, 0.1, x, y, x, y, steps=1)
    at_limit = deep[:-2]
    with fastmeta.backend("ext"):
        ours = fastmeta.mlp_loss(at_limit, x, y)
    with fastmeta.backend("reference"):
        torch.testing.assert_close(ours, fastmeta.mlp_loss(at_limit, x, y))


@pytest.mark.cpu
@pytest.mark.parametrize("isa", _C.isas())
@pytest.mark.parametrize("op", [op for op, backends in (BACKENDS | VARIANTS).items() if "ext" in backends])
def test_every_instruction_set(isa, op):
    before = _C.isa()
    try:
        _C.set_isa(isa)
        assert_ext_equals_reference(op)
    finally:
        _C.set_isa(before)


def test_without_the_exchange_table():
    """The way tensors are read on a torch that lacks __dlpack_c_exchange_api__."""
    try:
        _C.init_tensor(torch.Tensor, False)
        for op in (op for op, backends in BACKENDS.items() if "ext" in backends):
            assert_ext_equals_reference(op)
    finally:
        _C.init_tensor(torch.Tensor, True)


def test_threads_follow_torch():
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert _C.num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert os.path.dirname(torch.__file__) in _ext.openmp  # torch's own pool


def test_warns_once_without_native_kernels():
    code = (
        "import sys; sys.modules['fastmeta._C'] = None\n"
        "import torch, fastmeta\n"
        "for _ in range(2): fastmeta.sgd_step(torch.ones(2), torch.ones(2), 0.1)\n"
        "print(fastmeta.prototypes(torch.ones(2, 2), torch.tensor([0, 1]), 2).sum().item())\n"
    )
    done = run(code)
    assert done.stdout.strip() == "4.0", done.stderr
    assert done.stderr.count("no native CPU kernels") == 1


@pytest.mark.cpu
@pytest.mark.parametrize("shape", [(6,), (3, 4), (2, 3, 4), (0, 4), (3, 0), (0,)])
def test_labels_are_searched_alike_with_and_without_the_extension(shape):
    for _ in range(20):
        labels = torch.randint(-1, 4, shape)
        assert _check._empty_class_in_torch(labels, 3) == _C.empty_class(labels, 3)
        for ignored in (None, -1, 3):
            wrong = _check._label_out_of_range_in_torch(labels, 3, ignored)
            assert wrong == _C.label_out_of_range(labels, 3, ignored)


def test_info():
    done = forks.run("-m", "fastmeta.info")
    assert done.returncode == 0, done.stderr
    assert f"fastmeta {fastmeta.__version__}" in done.stdout and f"instruction set {_C.isa()}" in done.stdout
    assert all(op in done.stdout for op in ("proto_loss", "mlp_meta_loss"))
    assert "built from source" in done.stdout or "a wheel" in done.stdout
    assert ("CUDA kernels for sm_" if _C.build_info()["cuda"] else "CUDA kernels none: ") in done.stdout


@pytest.mark.parametrize("note", ["the native kernels must compile, got csrc/a.cpp:3:1: error: no\n", None])
def test_info_without_the_extension(monkeypatch, tmp_path, note):
    """It says why there is none, as setup.py noted it, and how to get it."""
    monkeypatch.setitem(sys.modules, "fastmeta._ext", None)
    monkeypatch.setattr(info, "__file__", str(tmp_path / "info.py"))
    if note:
        (tmp_path / "_C_missing.txt").write_text(note)
    why, how, _ = info.extension()
    assert why == "none: " + (note.strip() if note else "import of fastmeta._ext halted; None in sys.modules")
    assert "install again from source" in how or "for Linux" in how


@pytest.mark.parametrize(
    ("capability", "built"),
    [(c, True) for c in ((8, 0), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0), (12, 1), (13, 0))]
    + [(c, False) for c in ((7, 5), (11, 0))],
)
def test_which_cards_the_cuda_kernels_are_built_for(monkeypatch, capability, built):
    """sm_90a is for 9.0 alone; the last one's PTX for what comes later. Auto passes over a card without a kernel, and info says it."""
    assert _dispatch.runs_on("80,90a,100,120", capability) == built
    assert not _dispatch.runs_on("80,90a", (9, 1))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(_ext, "cuda_ops", lambda: ["mlp_loss"])
    monkeypatch.setattr(_ext, "build_info", lambda: {"cuda": "80,90a,100,120"})
    reason = _dispatch.unavailable.__wrapped__("mlp_loss", "ext", torch.device("cuda", 0))
    assert reason == (
        None if built else f"built for sm_80, sm_90a, sm_100, sm_120, got sm_{capability[0]}{capability[1]}"
    )
    assert _dispatch.unavailable.__wrapped__("sgd_step", "ext", torch.device("cuda", 0)) == "no such CUDA kernel"


@pytest.mark.cpu
def test_each_card_of_a_machine_is_asked_for_its_own_kernels(monkeypatch):
    """Whichever is the current one, and whichever was asked about before."""
    cards = torch.device("cuda", 0), torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=cards[0]: ((9, 0), (7, 5))[device.index])
    monkeypatch.setattr(_ext, "cuda_ops", lambda: ["mlp_loss"])
    monkeypatch.setattr(_ext, "build_info", lambda: {"cuda": "80,90a"})
    try:
        of_cards = [_dispatch._candidates("mlp_loss", card, "auto") for card in (*cards, *cards)]
    finally:
        for function in (_dispatch._candidates, _dispatch.unavailable):
            function.cache_clear()
    chosen = [next(candidate for candidate, reason, _ in found if reason is None) for found in of_cards]
    assert chosen == ["ext", "reference"] * 2


def test_what_the_conv_ops_do_not_take_on_cuda():
    on_cuda, blocks = SimpleNamespace(is_cuda=True), ((1, 1, "batch", 1e-5, True, 2, 0.0, 3, 0),)
    params = [on_cuda, None, None, None, on_cuda, None]
    assert _ext.conv_forward_limit(params, None, blocks) is None
    assert "linear layer on CUDA" in _ext.conv_forward_limit([*params[:4], None, None], None, blocks)
    assert _ext.conv_adapt_limit(params, [], None, None, 1, blocks, "mse", False, None) is None
    assert "no optimiser on CUDA" in _ext.conv_adapt_limit(
        params, [], None, None, 1, blocks, "mse", False, (True, None)
    )


def test_set_isa_error():
    with pytest.raises(
        ValueError, match="set_isa: name must be an instruction set that this processor has, got avx1024"
    ):
        _C.set_isa("avx1024")
