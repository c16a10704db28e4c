"""Adam with less around its kernel than torch's, for models whose whole meta-iteration takes microseconds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._torch import OPTIMISER_HOOKS, fused_adam, torchs_step

OPTIONS = ("amsgrad", "maximize", "differentiable", "decoupled_weight_decay")  # of a group that torch's own step takes


class _Kept(NamedTuple):
    """The state of one group of parameters, as the kernel takes it."""

    params: list[Tensor]
    means: list[Tensor]
    squares: list[Tensor]
    steps: list[Tensor]  # each a number of `taken`
    taken: Tensor


class Adam(torch.optim.Adam):
    r"""theta <- theta - lr m' / (sqrt(v') + eps), m' and v' the running means of the gradient and of its square, without their bias.

    It is torch.optim.Adam with fused=True, bit for bit, with its state, hooks and schedulers. Where all parameters are in one group
    and have gradients, a step is one call of torch's kernel and little else: a third of the time on a small model. Any other
    step is torch's own. On the meta device, where torch has no fused kernel, it is unfused.

    Errors: as torch.optim.Adam. Source: Kingma and Ba 2015, arXiv:1412.6980.

    ```python
    import torch
    import fastmeta

    net = torch.nn.Linear(3, 1)
    optimiser = fastmeta.optim.Adam(net.parameters(), lr=1e-3)
    net(torch.randn(8, 3)).square().mean().backward()
    optimiser.step()
    optimiser.zero_grad()
    ```
    """

    _kept: _Kept | None = None

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, fused=True)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        kept = self._kept if closure is None else None
        if kept is not None and self._is_plain(kept):
            grads = [p.grad for p in kept.params]
            if type(None) not in map(type, grads):
                self._all_at_once(kept, grads)
                return None
        found = torchs_step(self, closure)
        self._kept = self._keep()
        return found

    step.hooked = True  # type: ignore[attr-defined]  # torch need not wrap it: where there are hooks, torch's step calls them

    def zero_grad(self, set_to_none: bool = True) -> None:
        if not set_to_none:
            return super().zero_grad(set_to_none)
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self._kept = None
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        group["fused"] = group["fused"] and not any(
            p.is_meta for p in group["params"]
        )  # for which torch has no such kernel

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._kept = None
        super().load_state_dict(state_dict)

    def _is_plain(self, kept: _Kept) -> bool:
        """Whether the state is still what was kept, and nobody wants torch's own step."""
        own, group = self.__dict__, self.param_groups[0]
        first = self.state.get(kept.params[0], {})
        return (
            first.get("exp_avg") is kept.means[0]
            and first.get("step") is kept.steps[0]
            and group["params"] == kept.params
            and isinstance(group["lr"], float)
            and not any(map(group.__getitem__, OPTIONS))
            and not (own["_optimizer_step_pre_hooks"] or own["_optimizer_step_post_hooks"] or any(OPTIMISER_HOOKS))
            and own.get("grad_scale") is None
            and own.get("found_inf") is None
            and not torch.compiler.is_compiling()
        )

    def _all_at_once(self, kept: _Kept, grads: list[Tensor | None]) -> None:
        group = self.param_groups[0]
        beta1, beta2 = group["betas"]
        with torch.no_grad():
            kept.taken.add_(1)
            fused_adam(
                kept.params, grads, kept.means, kept.squares, [], kept.steps, lr=group["lr"], beta1=beta1, beta2=beta2,
                weight_decay=group["weight_decay"], eps=group["eps"], amsgrad=False, maximize=False, grad_scale=None, found_inf=None,
            )  # fmt: skip

    def _keep(self) -> _Kept | None:
        """The state, its steps as one tensor; None where it is of several groups, devices or dtypes, or not whole yet."""
        if len(self.param_groups) != 1:
            return None
        params = self.param_groups[0]["params"]
        states = [self.state.get(p, {}) for p in params]
        if not (self.param_groups[0]["fused"] and all(states)) or len({(p.device, p.dtype) for p in params}) != 1:
            return None
        taken = torch.stack([state["step"] for state in states])
        for state, step in zip(states, taken.unbind(), strict=True):
            state["step"] = step
        means, squares, steps = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "step"))
        return _Kept(list(params), means, squares, steps, taken)
