"""A step back of an inner loop takes a product of the gradient's derivatives: by double backward, as `unroll` has it, or by forward-mode AD
through the backward. `python -m measure.products` prints the second's processor time over the first's, on one thread, and the medians."""

import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel


class Block(nn.Module):
    """A transformer's, and a classifier of its mean."""

    def __init__(self, width: int = 64, heads: int = 4):
        super().__init__()
        self.heads, self.norms = heads, nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.out, self.head = (nn.Linear(width, n) for n in (3 * width, width, 10))
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norms[0](x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return self.head((x + self.mlp(self.norms[1](x))).mean(1))


def mlp(width: int) -> nn.Module:
    layers = nn.Linear(784, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 10)
    return nn.Sequential(nn.Flatten(), *layers)


def conv4(norm: bool) -> nn.Module:
    layers: list[nn.Module] = []
    for channels in (1, 32, 32, 32):
        norms = [nn.BatchNorm2d(32, track_running_stats=False)] if norm else []
        layers += [nn.Conv2d(channels, 32, 3, padding=1), *norms, nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32, 10))


def cases() -> dict[str, tuple[nn.Module, Tensor]]:
    images = torch.randn(100, 1, 28, 28)
    return {
        "MLP 784-64-64-10, 20 images": (mlp(64), images[:20]),
        "MLP 784-256-256-10, 100 images": (mlp(256), images),
        "Conv4-32 with batch norm, 20 images": (conv4(True), images[:20]),
        "Conv4-32 without norm, 20 images": (conv4(False), images[:20]),
        "transformer block of width 64, 8 x 32 tokens": (Block(), torch.randn(8, 32, 64)),
    }


def ways(model: nn.Module, x: Tensor) -> dict[str, Callable[[], list[Tensor]]]:
    """Each finds v . d grad / d (parameters, x)."""
    names, params = zip(*((name, p.detach()) for name, p in model.named_parameters()), strict=True)
    v, targets = [torch.randn_like(p) for p in params], torch.arange(len(x)) % 10

    def loss(theta: list[Tensor], x: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return F.cross_entropy(functional_call(model, dict(zip(names, theta, strict=True)), (x,)), targets)

    def leaves() -> list[Tensor]:
        return [t.clone().requires_grad_() for t in (*params, x)]

    def double_backward() -> list[Tensor]:
        *theta, inputs = leaves()
        grads = torch.autograd.grad(loss(theta, inputs), theta, create_graph=True)
        return list(torch.autograd.grad(grads, [*theta, inputs], v))

    def dual_numbers() -> list[Tensor]:
        *theta, inputs = leaves()
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(p, u) for p, u in zip(theta, v, strict=True)]
            grads = torch.autograd.grad(loss(duals, inputs), [*duals, inputs])
            return [forward_ad.unpack_dual(g).tangent for g in grads]

    def functional() -> list[Tensor]:
        gradient = torch.func.grad(loss, argnums=(0, 1))
        _, (of_theta, of_x) = torch.func.jvp(gradient, (list(params), x), (v, torch.zeros_like(x)))
        return [*of_theta, of_x]

    return {"double backward": double_backward, "dual numbers": dual_numbers, "torch.func": functional}


def main(seconds: float) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for name, (model, x) in cases().items():
        exact = ways(model.double(), x.double())
        expected = exact["double backward"]()
        for way in exact.values():
            torch.testing.assert_close(way(), expected, rtol=1e-8, atol=1e-10)
        raced = ways(model.float(), x.float())
        times: dict[str, list[float]] = {way: [] for way in raced}
        end = time.process_time() + seconds
        while time.process_time() < end:
            for way, run in raced.items():
                before = time.process_time()
                run()
                times[way].append(time.process_time() - before)
        double, *others = (statistics.median(of_way) for of_way in times.values())
        ratios = ", ".join(f"{way} {x / double:.2f}" for way, x in zip([*times][1:], others, strict=True))
        print(f"{name}: {ratios}; {len(times['double backward'])} times", flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 10)
