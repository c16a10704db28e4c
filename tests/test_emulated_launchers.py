"""Every CUDA launcher over small problems of every kind, under the checker: the same bits in whatever order threads run, and
however much memory the device has. Then the same under AddressSanitizer and UBSan."""

import os
import subprocess
import sys
from pathlib import Path

import emulation
import pytest
import test_mlp_adapt
import test_mlp_forward
import test_mlp_grad
import test_mlp_hvp
import test_mlp_loss
import test_mlp_meta_loss
import torch
from compare import values_and_grads
from mlp_cases import ACTIVATIONS, LOSSES, problem

import fastmeta

SHAPES = (  # widths, n, T, parameters shared by the tasks, bias, rates, first order
    ((3, 5, 4), 7, 3, True, True, "scalar", False),
    ((1, 17, 2), 0, 2, False, True, "per tensor", False),
    ((18, 3), 5, 3, True, False, "per step", True),
    ((5, 19, 6, 3), 9, 2, False, False, "per element", False),
    ((2, 4, 1), 3, 1, True, True, "per element and step", False),
)
ROOMY = (132, 227 * 1024)  # multiprocessors, bytes of shared memory for a block
LESS = ((1, 64 * 1024), (132, 4096), (1, 1600))
ORDERS = (("forward", 0), ("reverse", 0), ("random", 1))


@pytest.fixture
def emulator():
    found = emulation.module()
    yield found
    found.set_order("random", 0)
    found.set_device(*ROOMY)


def calls(p, kind, first_order):
    """Every op, with the tensors it can be differentiated by."""
    return [
        (test_mlp_forward.op(p), [*p.flat, p.x]),
        (test_mlp_loss.op(p), test_mlp_loss.tensors(p)),
        (test_mlp_grad.op(p), test_mlp_loss.tensors(p)),
        (test_mlp_hvp.op(p), test_mlp_hvp.tensors(p)),
        (test_mlp_adapt.op(p, kind, 2, first_order), test_mlp_adapt.tensors(p, kind, 2)),
        test_mlp_meta_loss.make(p, kind, 2, first_order),
    ]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("loss", LOSSES)
def test_orders_and_devices_change_no_bit(emulator, loss, activation, shape):
    widths, n, T, shared, bias, kind, first_order = shape
    dtype = torch.float32 if activation == "gelu" else torch.float64
    p = problem(widths, n, T=T, loss=loss, activation=activation, shared=shared, bias=bias, dtype=dtype)
    made = calls(p, kind, first_order)

    def results(device, order):
        emulator.set_device(*device)
        emulator.set_order(*order)
        with fastmeta.backend("emulated"):
            return [values_and_grads(fn, tensors) for fn, tensors in made]

    first = results(ROOMY, ORDERS[0])
    for device, order in [*((ROOMY, order) for order in ORDERS[1:]), *((device, ORDERS[2]) for device in LESS)]:
        torch.testing.assert_close(results(device, order), first, rtol=0, atol=0, equal_nan=True)


@pytest.fixture
def sanitized():
    """A process of this Python in which the sanitizers see all memory."""
    names = ("libasan.so", "libubsan.so")
    found = [
        subprocess.check_output([*emulation.compiler(), f"-print-file-name={n}"], text=True).strip() for n in names
    ]
    if not all(os.path.isabs(path) for path in found):
        pytest.skip("the C++ compiler has no libasan.so and libubsan.so")
    options = {"ASAN_OPTIONS": "detect_leaks=0", "FASTMETA_EMULATION": "sanitized", "LD_PRELOAD": " ".join(found)}

    def run(*arguments):
        return subprocess.run([sys.executable, *arguments], env=os.environ | options, capture_output=True, text=True)

    return run


def test_no_sanitizer_objects(sanitized):
    emulation.compile_module("sanitized")  # here: a compiler under its own sanitizers is slow
    done = sanitized(
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        str(Path(__file__)),
        "-k",
        "(entropy and gelu) or (mse and tanh)",
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("right", None),
        ("reads_beyond_input", "heap-buffer-overflow"),
        ("writes_beyond_output", "heap-buffer-overflow"),
        ("reads_beyond_dynamic", "heap-buffer-overflow"),
        ("writes_beyond_static", "heap-buffer-overflow"),
        ("misaligned", "misaligned address"),
    ],
)
def test_planted_faults_are_found_by_the_sanitizers(sanitized, name, words):
    path = str(emulation.compile_planted("sanitized"))
    code = "import ctypes, sys; ctypes.CDLL(sys.argv[1]).run_planted(sys.argv[2].encode(), 2, 0, ctypes.c_uint64(0))"
    done = sanitized("-c", code, path, name)
    assert (done.returncode == 0) == (words is None), done.stderr
    assert words is None or words in done.stderr
