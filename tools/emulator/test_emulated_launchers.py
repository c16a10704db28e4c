"""Every CUDA launcher over small problems of every kind, under the checker: the same bits in whatever order threads run, and
however much memory the device has. Then the same under AddressSanitizer and UBSan."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastmeta
from emulator import emulation
from harness.compare import outputs, values_and_grads
from harness.mlp_calls import every
from harness.mlp_cases import ACTIVATIONS, LOSSES, problem

SHAPES = (  # widths, n, T, parameters shared by the tasks, bias, rates, first order
    ((3, 5, 4), 7, 5, True, True, "scalar", False),
    ((1, 17, 2), 0, 2, False, True, "per tensor", False),
    ((18, 3), 5, 3, True, False, "per step", True),
    ((5, 19, 6, 3), 9, 2, False, False, "per element", False),
    ((2, 4, 1), 3, 2, True, True, "per element and step", False),
    ((33, 40, 2), 3, 3, False, True, "scalar", True),  # takes 256 threads
)
BY_TASK = (  # multiprocessors, shared memory of a block; order of threads, seed
    (132, 227 * 1024, "forward", 0),
    (1, 64 * 1024, "reverse", 0),
    (1, 227 * 1024, "random", 1),
)
if os.environ.get("FASTMETA_EMULATION") == "sanitized":
    BY_TASK = BY_TASK[:2]  # the third differs in the order of threads, of which only the checker knows
BY_LAYER = ((132, 0, "forward", 0), (1, 0, "random", 2))
TILES = (  # widths, n, T
    ((3, 5, 4), 7, 2),
    ((1, 17, 2), 0, 1),
    ((2, 66, 3), 1, 2),
)


@pytest.fixture
def emulator():
    found = emulation.module()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small tensors, between calls that take long: a second thread only waits
    yield found
    torch.set_num_threads(threads)
    emulation.reset(found)


def results(fn, tensors):
    """Of a call without gradients, with all, and with every second one."""
    leaves = [t.detach().clone().requires_grad_(i % 2 == 1) for i, t in enumerate(tensors)]
    some = torch.autograd.grad(sum(y.sum() for y in outputs(fn(*leaves))), leaves[1::2], materialize_grads=True)
    return [*outputs(fn(*tensors)), *values_and_grads(fn, tensors), *some]


def run_all(emulator, runs, made):
    """The results of every op, in each run."""
    found = []
    for multiprocessors, shared_bytes, order, seed in runs:
        emulator.set_device(multiprocessors, shared_bytes)
        emulator.set_order(order, seed)
        with fastmeta.backend("emulated"):
            found.append([results(fn, tensors) for fn, tensors in made])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=0, equal_nan=True)
    return found[0]


EVERY = [  # of the first shape five activations; of another one in float32 and one in float64, each with a loss
    pytest.param(loss, activation, shape, id=f"{loss}-{activation}-shape{i}")
    for i, shape in enumerate(SHAPES)
    for j, activation in enumerate(
        ACTIVATIONS[:5] if i == 0 else ("gelu", ("relu", "tanh", "sigmoid", "identity")[i % 4])
    )
    for loss in (LOSSES if i == 0 else LOSSES[j : j + 1])
]


@pytest.mark.parametrize(("loss", "activation", "shape"), EVERY)
def test_orders_and_devices_change_no_bit(emulator, loss, activation, shape):
    widths, n, T, shared, bias, kind, first_order = shape
    dtype = torch.float32 if activation == "gelu" else torch.float64
    p = problem(widths, n, T=T, loss=loss, activation=activation, shared=shared, bias=bias, dtype=dtype)
    run_all(emulator, BY_TASK, every(p, kind, first_order))


TILED = [  # with the largest shape, each dtype and kind once
    pytest.param(loss, activation, kind, shape, id=f"{loss}-{activation}-{kind}-shape{i}")
    for i, shape in enumerate(TILES)
    for loss in LOSSES
    for activation, kind in (("gelu", "per tensor"), ("tanh", "per element"))
    if i < 2 or (loss == "mse") == (activation == "gelu")
]


@pytest.mark.parametrize(("loss", "activation", "kind", "shape"), TILED)
def test_orders_change_no_bit_layer_by_layer(emulator, loss, activation, kind, shape):
    widths, n, T = shape
    dtype = torch.float32 if activation == "gelu" else torch.float64
    p = problem(widths, n, T=T, loss=loss, activation=activation, shared=kind == "per tensor", dtype=dtype)
    made = every(p, kind, False)
    by_layer, by_task = run_all(emulator, BY_LAYER, made), run_all(emulator, BY_TASK[:1], made)
    torch.testing.assert_close(by_layer, by_task, equal_nan=True)


def test_orders_change_no_bit_in_tf32(emulator, allow_tf32):
    p = problem((2, 66, 3), 9, T=1, dtype=torch.float32)
    run_all(emulator, BY_LAYER, every(p, "per tensor", False))


@pytest.fixture
def sanitized():
    """A process of this Python in which the sanitizers see all memory."""
    names = ("libasan.so", "libubsan.so")
    found = [
        subprocess.check_output([*emulation.compiler(), f"-print-file-name={n}"], text=True).strip() for n in names
    ]
    if not all(os.path.isabs(path) for path in found):
        pytest.skip("the C++ compiler has no libasan.so and libubsan.so")
    options = {"ASAN_OPTIONS": "detect_leaks=0", "OMP_NUM_THREADS": "1", "LD_PRELOAD": " ".join(found)}
    options["FASTMETA_EMULATION"] = "sanitized"

    def run(*arguments):
        return subprocess.run([sys.executable, *arguments], env=os.environ | options, capture_output=True, text=True)

    return run


@pytest.mark.gate
def test_no_sanitizer_objects(sanitized):
    emulation.compile_module("sanitized")  # here: a compiler under its own sanitizers is slow
    some = "tf32 or ((entropy and gelu) or (mse and not gelu)) and not (layer and (shape1 or shape2))"
    some += " and not (shape0 and not layer and (tanh or sigmoid or identity))"
    some += " or small_network"
    files = [str(Path(__file__).with_name(f"test_emulated_{name}.py")) for name in ("launchers", "convs")]
    done = sanitized("-m", "pytest", "-q", "-p", "no:cacheprovider", *files, "-k", some)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.gate
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
