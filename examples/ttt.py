"""Test-time training: a small language model whose MLP block takes gradient steps along the text that it reads.

Sun et al. 2024, arXiv:2407.04620. The text is Python's own help. After each chunk the block takes a step of SGD on that chunk's loss;
the loss of every chunk counts, so the training learns the block's first weights, its rates, and the layers around it for what the steps
will do. Beside it the same model without steps.
"""

from __future__ import annotations

import argparse
import math
from functools import partial
from pydoc_data.topics import topics

import torch
import torch.nn.functional as F
from common import arguments, count, print_table, run
from plain import WAYS, Params
from torch import Tensor, nn
from tqdm import trange

import fastmeta

VOCABULARY, WINDOW = 128, 8  # ASCII; a character is told from so many before it


class Reader(nn.Module):
    """Embeddings of a window, a layer over all of them, the MLP block, a layer that scores the next character."""

    def __init__(self, width: int = 64, hidden: int = 128, embedding: int = 16) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, embedding)
        self.mix = nn.Linear(WINDOW * embedding, width)
        self.norm = nn.LayerNorm(width)
        self.block = nn.ParameterDict(
            {
                "up": torch.randn(width, hidden) / width**0.5,
                "bias": torch.zeros(1, hidden),
                "down": torch.randn(hidden, width) / hidden**0.5,
            }
        )
        self.log_rates = nn.ParameterDict({name: torch.tensor(0.1).log() for name in self.block})
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, VOCABULARY))

    def loss(self, block: Params, text: Tensor) -> Tensor:
        """Of each text, [B], in nats a character; text: [B, WINDOW + n]; the block's weights [...] or [B, ...]."""
        before = text.unfold(1, WINDOW, 1)[:, :-1]  # [B, n, WINDOW]
        x = F.gelu(self.mix(self.embedding(before).flatten(2)))
        x = x + F.gelu(self.norm(x) @ block["up"] + block["bias"]) @ block["down"]
        return F.cross_entropy(self.head(x).mT, text[:, WINDOW:], reduction="none").mean(1)


def losses(way: str, model: Reader, chunks: list[Tensor]) -> Tensor:
    """Of each chunk, [K, B], by the block after a step on each chunk before; the steps close over all other layers."""
    rates = {name: log.exp() for name, log in model.log_rates.items()}
    start = dict(model.block.items())
    later, _ = WAYS[way](
        model.loss, start, [(chunk,) for chunk in chunks[:-1]], optimiser=fastmeta.SGD(rates),
        outer=[partial(model.loss, text=chunk) for chunk in chunks[1:]], tasks=len(chunks[0]),
    )  # fmt: skip
    return torch.cat([model.loss(start, chunks[0])[None], later])


def losses_without_steps(model: Reader, chunks: list[Tensor]) -> Tensor:
    return torch.stack([model.loss(dict(model.block.items()), chunk) for chunk in chunks])


def texts() -> tuple[Tensor, Tensor]:
    """Two thirds of Python's help topics to train on, and the others."""
    parts: tuple[list[str], list[str]] = [], []
    for i, name in enumerate(sorted(topics)):
        parts[i % 3 == 2].append(topics[name])
    training, test = (torch.tensor(list("".join(part).encode("ascii", "replace"))) for part in parts)
    return training, test


def chunks_at(text: Tensor, starts: Tensor, args: argparse.Namespace) -> list[Tensor]:
    """[B, WINDOW + length] each; a chunk's window begins in the one before."""
    pieces = text[starts[:, None] + torch.arange(WINDOW + args.chunks * args.length)]
    return list(pieces.unfold(1, WINDOW + args.length, args.length).unbind(1))


def trained(text: Tensor, steps_inside: bool, args: argparse.Namespace) -> Reader:
    torch.manual_seed(args.seed)  # both models begin alike and read the same
    model = Reader().to(args.device)
    optimiser = torch.optim.Adam(model.parameters(), args.lr)
    bar = trange(args.steps, desc="with steps" if steps_inside else "without steps", mininterval=0.5)
    for step in bar:
        starts = torch.randint(len(text) - WINDOW - args.chunks * args.length, (args.batch,))
        chunks = [chunk.to(args.device) for chunk in chunks_at(text, starts, args)]
        optimiser.zero_grad()
        loss = (losses(args.way, model, chunks) if steps_inside else losses_without_steps(model, chunks)).mean()
        loss.backward()
        optimiser.step()
        if step % 20 == 0:
            bar.set_postfix_str(f"{loss.item() / math.log(2):.3f} bits a character", refresh=False)
    return model


@torch.no_grad()
def bits(model: Reader, text: Tensor, steps_inside: bool, args: argparse.Namespace) -> Tensor:
    """Of each chunk, [K], a character."""
    length = args.chunks * args.length
    starts = torch.arange(0, len(text) - WINDOW - length, length)[: args.eval_texts]
    chunks = [chunk.to(args.device) for chunk in chunks_at(text, starts, args)]
    found = losses("unroll", model, chunks) if steps_inside else losses_without_steps(model, chunks)
    return found.mean(1) / math.log(2)


def main(args: argparse.Namespace) -> None:
    training, test = texts()
    plain, reader = (trained(training, inside, args) for inside in (False, True))
    rows = []
    for name, model, inside in (
        ("without steps", plain, False), ("steps at test time only", plain, True), ("trained through the steps", reader, True),
    ):  # fmt: skip
        found = bits(model, test, inside, args)
        rows.append([name, *(f"{value:.3f}" for value in (found[0], found[-args.chunks // 4 :].mean(), found.mean()))])
    print(f"\nother topics, {args.chunks} chunks of {args.length}, by {args.way}")
    print_table(["bits a character", "first chunk", "last quarter", "all"], rows)


if __name__ == "__main__":
    parser = arguments(__doc__, steps=300)
    parser.add_argument("--way", choices=sorted(WAYS), default="unroll", help="to the gradient")
    parser.add_argument("--chunks", type=count, default=16, help="of a text, with a step after each but the last")
    parser.add_argument("--length", type=count, default=64, help="characters of a chunk")
    parser.add_argument("--batch", type=count, default=8, help="texts of a meta-iteration")
    parser.add_argument("--lr", type=float, default=3e-3, help="Adam's learning rate")
    parser.add_argument("--eval-texts", type=count, default=200, help="unseen texts to evaluate on, at most")
    run(parser, main)
