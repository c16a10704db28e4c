"""One rank of test_distributed.py: `distributed_worker.py OUT` writes the gradients and parameters of every case to OUT by rank 0.

RANK, WORLD_SIZE and the address of the store come from the environment, as torchrun sets them.
"""

import functools
import gc
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import fastmeta
from fastmeta.data import Episodes, Sinusoid, TaskSampler, sample_episodes

D, WAYS, TASKS = torch.float64, 3, 6
IMAGES = torch.rand(8, 6, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=D)


def images(count, generator):
    return sample_episodes(IMAGES, count, WAYS, 2, 3, generator=generator)


def features(count, generator):
    support_x, support_y, query_x, query_y = images(count, generator)
    return Episodes(support_x.flatten(2), support_y, query_x.flatten(2), query_y)


def sinusoids(count, generator):
    return Sinusoid().sample(count, 5, 5, generator=generator, dtype=D)


def mlp():
    return nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))


def body():
    norm = nn.BatchNorm2d(4, track_running_stats=False)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), norm, nn.Tanh(), nn.MaxPool2d(4), nn.Flatten())


def body_without_norm():
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.MaxPool2d(4), nn.Flatten())


def convnet():
    return nn.Sequential(*body(), nn.Linear(16, WAYS))


CASES = {
    "maml": (lambda: fastmeta.MAML(mlp(), 0.1, 2, loss="mse"), sinusoids),
    "maml, learned rates": (
        lambda: fastmeta.MAML(mlp(), nn.Parameter(torch.tensor([0.1, 0.2])), 2, loss="mse"),
        sinusoids,
    ),
    "maml, convolutions": (lambda: fastmeta.MAML(convnet(), 0.1, 2), images),
    "maml, a part": (lambda: fastmeta.MAML(convnet(), 0.1, 2, adapt=["5"]), images),
    "maml, optimiser": (
        lambda: fastmeta.MAML(
            mlp(), steps=2, loss="mse", optimiser=fastmeta.SGD(nn.Parameter(torch.tensor([0.1, 0.2])), momentum=0.5)
        ),
        sinusoids,
    ),
    "meta-sgd": (lambda: fastmeta.MetaSGD(mlp(), 0.1, 2, loss="mse"), sinusoids),
    "meta-sgd, convolutions": (lambda: fastmeta.MetaSGD(convnet(), 0.1, 2), images),
    "anil": (lambda: fastmeta.ANIL(body(), nn.Linear(16, WAYS), 0.1, 2), images),
    "proto-maml": (lambda: fastmeta.ProtoMAML(body(), WAYS, 0.1, 2), images),
    "reptile": (lambda: fastmeta.Reptile(mlp(), 0.1, 3, loss="mse"), sinusoids),
    "reptile, convolutions": (lambda: fastmeta.Reptile(convnet(), 0.1, 3), images),
    "imaml": (lambda: fastmeta.IMAML(mlp(), 0.1, 4, loss="mse"), sinusoids),
    "leo": (lambda: fastmeta.LEO(64, 4).eval(), features),
    "protonet": (lambda: fastmeta.ProtoNet(body_without_norm(), temperature=nn.Parameter(torch.tensor([2.0]))), images),
    "matching-net": (lambda: fastmeta.MatchingNet(body_without_norm()), images),
}


def built(case):
    build, draw = CASES[case]
    torch.manual_seed(0)
    return build().to(D), TaskSampler(draw, TASKS, seed=1)


def trained(model, learner, sampler, whole=lambda x: x):
    """The gradients of the first meta-iteration, and the parameters after three; `whole`: of a part of a tensor."""
    optimiser = torch.optim.SGD(learner.parameters(), 0.01, momentum=0.9)
    first = {}
    for step in range(3):
        optimiser.zero_grad()
        model(*next(sampler)).mean().backward()
        if step == 0:
            first = {f"gradient of {name}": whole(p.grad).clone() for name, p in learner.named_parameters()}
        optimiser.step()
    return first | {name: whole(p.detach()).clone() for name, p in learner.named_parameters()}


@functools.cache
def alone(case):
    learner, sampler = built(case)
    return trained(learner, learner, sampler)


def in_ddp(case):
    """With 3 processes the gradients are views of DDP's buckets."""
    learner, sampler = built(case)
    model = DistributedDataParallel(learner, gradient_as_bucket_view=dist.get_world_size() == 3)
    return trained(model, learner, sampler)


def in_fsdp(case, *parts):
    """With the named parts sharded, and what is left by the root."""
    learner, sampler = built(case)
    for part in parts:
        fully_shard(learner.get_submodule(part))
    fully_shard(learner)
    return trained(learner, learner, sampler, whole=lambda x: x.full_tensor())


def refusal_of_sharded_parameters():
    """What `learner.loss` says, which runs no hooks of the learner."""
    learner, sampler = built("maml")
    fully_shard(learner)
    try:
        learner.loss(*next(sampler))
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def main():
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    found = {case: in_ddp(case) for case in CASES}
    if dist.get_world_size() == 2:
        found |= {f"fsdp, {case}": in_fsdp(case) for case in CASES}
        found |= {"fsdp, parts": in_fsdp("protonet", "encoder"), "fsdp, refused": refusal_of_sharded_parameters()}
    if dist.get_rank() == 0:
        torch.save(found, sys.argv[1])
    del found
    gc.collect()  # nothing may hold the group: its threads would run into the interpreter's end
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
