"""What is replayed launches what the ordinary way launches: checks in a process of their own, with stub_driver.

`python -m emulator.launch_checks` prints {check: what is wrong, or None}.
"""

from __future__ import annotations

import json
import traceback

import torch

from emulator import stub_driver
from emulator.launches import Launches, env, forget, known, ordinary, replays, same_launches
from harness.cases import case  # before the driver: it chooses the interpreter

TRITON_OPS = (
    "matching_log_probs",
    "proto_log_softmax",
    "proto_loss",
    "proto_loss_soft",
    "prototypes",
    "sgd_step",
    "task_conv2d",
)
CHECKS = {}


def check(fn):
    CHECKS[fn.__name__] = fn
    return fn


def loss(query, centres, targets, **options):
    import fastmeta

    return fastmeta.proto_loss(query, centres, targets, **options)


def task(dtype=torch.float32, queries=6, ways=5, features=16, offset=0):
    """Query, prototypes, targets; the query `offset` elements into its memory."""
    memory = torch.randn(3 * queries * features + 8).to(dtype)
    query = memory[offset : offset + 3 * queries * features].view(3, queries, features)
    return query, torch.randn(3, ways, features).to(dtype), torch.randint(0, ways, (3, queries))


def derivatives(fn, tensors, order):
    """Outputs, first and second derivatives."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    outputs = fn(*leaves)
    found = outputs if isinstance(outputs, tuple) else (outputs,)
    for i in range(order):
        grads = torch.autograd.grad(
            found, leaves, [torch.ones_like(y) for y in found], create_graph=i + 1 < order, allow_unused=True
        )
        found = [g for g in grads if g is not None and g.requires_grad]
    return found


@check
def every_op_and_derivative():
    for op in TRITON_OPS:
        for dtype, tasks in ((torch.float32, 2), (torch.float16, None))[: 2 if op in ("proto_loss", "sgd_step") else 1]:
            c = case(op, tasks, dtype)
            same_launches(lambda c=c: c.fn(*c.tensors), c.tensors)
            for order in (1, 2):
                same_launches(lambda c=c, order=order: derivatives(c.fn, c.tensors, order), c.tensors)
    assert "never" not in known()


@check
def each_kind_of_tensor_has_its_own():
    seen = []
    for given in (
        task(), task(queries=7), task(ways=4), task(features=17), task(torch.float64), task(torch.bfloat16), task(offset=1),
    ):  # fmt: skip
        same_launches(lambda given=given: loss(*given), given)
        seen.append(env.launches.of(lambda given=given: loss(*given), given))
    assert len({repr(x) for x in seen}) == len(seen)
    query, centres, targets = task()
    for changed in (query.mT.contiguous().mT, query.expand(3, 6, 16)[:1].expand(3, 6, 16), torch._neg_view(query)):
        same_or_ordinary(lambda changed=changed: loss(changed, centres, targets), [centres, targets])


def same_or_ordinary(call, inputs):
    for _ in range(3):
        call()
    assert env.launches.of(call, inputs) == ordinary(lambda: env.launches.of(call, inputs))


@check
def numbers_are_those_of_the_call():
    import fastmeta

    given, params = task(), [torch.randn(4, 3), torch.randn(4)]
    for temperature in (0.5, 0.7, 2.0):
        same_launches(lambda t=temperature: loss(*given, temperature=t), given)
    for rate in (0.1, 0.2, -0.3, [0.1, 0.5]):
        same_launches(lambda r=rate: fastmeta.sgd_step(params, params, r), params)
    before = replays()
    for i in range(5):
        loss(*given, temperature=3.0 + i)
        fastmeta.sgd_step(params, params, 0.01 * i + 0.5)
    assert replays() == before


@check
def one_tensor_twice_is_not_two():
    x, y, targets = torch.randn(3, 5, 16), torch.randn(3, 5, 16), torch.randint(0, 5, (3, 5))
    for _ in range(3):
        loss(x, x, targets)
    same_launches(lambda: loss(x, y, targets), (x, y, targets))
    same_launches(lambda: loss(y, y, targets), (y, targets))


@check
def the_stream_is_the_current_one():
    given = task()
    for stream in (0, 64, 128):
        env.stub.here.stream = stream
        same_launches(lambda: loss(*given), given)
        loss(*given)
        assert (env.stub.stream() or 0) == stream
    env.stub.here.stream = 0


@check
def another_device_loads_its_own():
    given = task()
    same_launches(lambda: loss(*given), given)
    modules, env.stub.here.device = env.stub.modules(), 1
    loss(*given)
    env.stub.here.device = 0
    assert env.stub.modules() > modules
    same_launches(lambda: loss(*given), given)


@check
def what_rounds_is_asked_anew():
    """Of many ways, by products and kernels at their ends: rounded operands are another kernel's."""
    given, launches = task(ways=64, queries=128, features=512), []
    for precision in ("ieee", "tf32", "ieee"):
        torch.backends.cuda.matmul.fp32_precision = precision
        launches.append(env.launches.of(lambda: loss(*given), given))
        loss(*given)
        same_launches(lambda: loss(*given), given)
    assert launches[0] == launches[2] != launches[1]


@check
def hooks_run():
    from triton import knobs

    from fastmeta.kernels import proto_loss

    given, calls = task(), []
    same_launches(lambda: loss(*given), given)
    for hook in (knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook):
        hook.add(calls.append)
        loss(*given)
        hook.remove(calls.append)
    kernel = proto_loss._proto_loss_fwd_kernel
    kernel.add_pre_run_hook(lambda *args, **kwargs: calls.append("run"))
    loss(*given)
    kernel.pre_run_hooks.clear()
    assert len(calls) == 3, calls
    loss(*given)
    assert len(calls) == 3, calls


@check
def errors_are_those_of_the_first_call():
    query, centres, targets = task()
    for _ in range(3):
        loss(query, centres, targets)
    for wrong, options in (
        ((query, centres[:, :, :3], targets), {}), ((query, centres.double(), targets), {}), ((query, centres, targets.int()), {}),
        ((query, centres, targets), {"temperature": -1.0}), ((query, centres, targets), {"temperature": float("inf")}),
    ):  # fmt: skip
        try:
            loss(*wrong, **options)
        except (TypeError, ValueError):
            continue
        raise AssertionError(f"no error for {options}")


@check
def a_rate_that_is_not_finite_is_none_of_those_before():
    import fastmeta

    params = [torch.randn(4, 3)]
    for rate in (-0.3, -0.2, 0.0, float("nan")):
        try:
            fastmeta.sgd_step(params, params, rate)
        except ValueError:
            assert rate != rate
            return
    raise AssertionError("no error for NaN")


@check
def gradients_at_once_launch_as_autograd():
    import fastmeta

    query, centres, targets = given = task()
    at_once = fastmeta.value_and_grad(fastmeta.proto_loss, argnums=(0, 1))
    same_launches(lambda: at_once(*given), given)

    def by_autograd():
        q, c = query.detach().requires_grad_(), centres.detach().requires_grad_()
        return torch.autograd.grad(loss(q, c, targets).sum(), (q, c))

    found, expected = (env.launches.of(call, given) for call in (lambda: at_once(*given), by_autograd))
    assert [x[:3] for x in found] == [x[:3] for x in expected]


@check
def without_the_extension_keys_tell_as_much():
    from fastmeta import _replay, _route

    native = _replay.describe
    query, centres, targets = task()
    kinds = [
        query, query.double(), query.mT, query[:, :3], query[:, :, 1:], query.bfloat16(), centres, targets, 0.5, -0.5, None,
        torch._neg_view(query), query.to_sparse(), query.to("meta"), torch._efficientzerotensor((3,)), "word", 3,
    ]  # fmt: skip
    both = [(native((x,)), _replay._describe((x,))) for x in kinds]
    for x, (a, b) in zip(kinds, both, strict=True):
        assert (a is None) == (b is None), x
        assert a is None or a[1] == b[1], x
    for a, c in ((a, c) for a in both for c in both if a[0] and c[0]):
        assert (a[0][0] == c[0][0]) == (a[1][0] == c[1][0])
    _replay.describe = _route.describe = _replay._describe
    try:
        each_kind_of_tensor_has_its_own()
    finally:
        _replay.describe = _route.describe = native


@check
def a_planted_reuse_is_found():
    """A key that leaves out the tensors' shapes, or their alignment, or the dtype."""
    from fastmeta import _replay

    right = _replay.describe
    pairs = (task(queries=8), task(queries=9)), (task(), task(offset=1)), (task(), task(torch.float64))
    for first, second in pairs:
        loss(*first), loss(*first), loss(*second)
        _replay.describe = lambda flat: (b"", right(flat)[1])
        try:
            same_launches(lambda first=first: loss(*first), first)
            same_launches(lambda second=second: loss(*second), second)
        except AssertionError:
            continue
        finally:
            _replay.describe = right
            forget()
        raise AssertionError("not found")


def main():
    env.stub = stub_driver.install()
    import fastmeta

    env.launches = Launches()
    torch.manual_seed(0)
    found = {}
    with fastmeta.backend("triton"):
        for name, fn in CHECKS.items():
            try:
                fn()
                found[name] = None
            except Exception:
                found[name] = traceback.format_exc()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
