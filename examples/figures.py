"""The pictures of demo.py and of reproductions.py."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch
from common import Timing
from matplotlib.ticker import LogLocator, NullFormatter
from style import save
from torch import Tensor

RIGHT, WRONG = "#009e73", "#d55e00"


class Fit(NamedTuple):
    """One regression task, one learner: the points it saw, the truth on a grid, and curves on the grid by label."""

    title: str
    support: tuple[Tensor, Tensor]
    grid: Tensor
    truth: Tensor
    curves: Mapping[str, Tensor]


def fits(path: Path, panels: Sequence[Fit]) -> None:
    """Before and after adaptation, two panels a row."""
    figure, axes = plt.subplots(len(panels) // 2, 2, figsize=(10, 6.5), sharex=True, sharey="row", squeeze=False)
    styles = [{"color": "0.6", "linestyle": "--"}, {"color": "C1"}, {"color": "C0"}]
    for ax, fit in zip(axes.flat, panels, strict=True):
        ax.plot(fit.grid, fit.truth, color="black", linewidth=1, label="truth")
        for (label, y), style in zip(fit.curves.items(), styles, strict=False):
            ax.plot(fit.grid, y, linewidth=2, label=label, **style)
        ax.plot(*fit.support, "o", color="black", markersize=5, label="support")
        ax.set_title(fit.title)
    for ax in axes[-1]:
        ax.set_xlabel("x (rad)")
    for ax in axes[:, 0]:
        ax.set_ylabel("y")
    handles, labels = max((ax.get_legend_handles_labels() for ax in axes.flat), key=lambda found: len(found[0]))
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    save(figure, path)


def episode(path: Path, title: str, support: Tensor, query: Tensor, log_probs: Tensor) -> None:
    """One row a class: its support image, then its queries, framed by whether the prediction is right.

    support: [N, 1, h, w]; query: [N, Q, 1, h, w]; log_probs: [N, Q, N].
    """
    ways, queries = query.shape[:2]
    figure, axes = plt.subplots(ways, queries + 1, figsize=(1.25 * (queries + 1.3), 1.5 * ways + 0.6), squeeze=False)
    figure.suptitle(title)
    for way, row in enumerate(axes):
        _image(row[0], support[way], "black")
        row[0].set_ylabel(f"class {way + 1}", fontsize=11)
        for ax, image, log_p in zip(row[1:], query[way], log_probs[way], strict=True):
            p, answer = log_p.exp().max(0)
            right = answer.item() == way
            _image(ax, image, RIGHT if right else WRONG)
            text = f"{answer.item() + 1} ({100 * p.item():.0f} %)"
            ax.set_xlabel(text, color=RIGHT if right else WRONG, labelpad=3, weight="normal" if right else "bold")
    axes[0, 0].set_title("support")
    axes[0, (queries + 1) // 2].set_title("queries")
    figure.supxlabel("below each query: the predicted class and its probability", fontsize="medium")
    save(figure, path)


def learning_curves(path: Path, panels: Mapping[str, tuple[str, Mapping[str, Sequence[float]], float | None]]) -> None:
    """For each title: the label of y, the losses of all meta-iterations by learner, and the loss of guessing, if known."""
    figure, axes = plt.subplots(1, len(panels), figsize=(10, 4), squeeze=False)
    for ax, (title, (ylabel, curves, chance)) in zip(axes.flat, panels.items(), strict=True):
        for color, (label, losses) in enumerate(curves.items()):
            x, y = _smooth(losses)
            ax.plot(x, y, f"C{color}", label=label)
        if chance is not None:
            ax.axhline(chance, color="0.6", linestyle="--", linewidth=1, label="guessing")
        ax.set(title=title, xlabel="meta-iteration", ylabel=ylabel, xscale="log", yscale="log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.legend()
    save(figure, path)


def speedups(path: Path, timings: Mapping[str, Timing]) -> None:
    """A bar for each problem, from bottom to top in the order given."""
    figure, ax = plt.subplots(figsize=(8, 0.7 * len(timings) + 1.3))
    bars = ax.barh(list(timings), [timing.speedup for timing in timings.values()], height=0.6)
    labels = [f"{t.speedup:.1f}x  ({1e3 * t.reference:.3g} → {1e3 * t.fastmeta:.3g} ms)" for t in timings.values()]
    ax.bar_label(bars, labels, padding=5)
    ax.axvline(1, color="0.6", linestyle="--", linewidth=1)
    ax.set_xlim(right=1.5 * max(1, *(timing.speedup for timing in timings.values())))
    ax.set_xlabel("speed-up of a meta-iteration over plain PyTorch (times)")
    ax.invert_yaxis()
    save(figure, path)


class Found(NamedTuple):
    """A mean, half the width of its interval, and what the paper has, if anything."""

    label: str
    mean: float
    half_width: float
    published: float | None


def accuracies(path: Path, panels: Mapping[str, Sequence[Found]]) -> None:
    """A panel for each title, two a row, a line for each label, the same in all panels."""
    labels = list(dict.fromkeys(found.label for panel in panels.values() for found in panel))
    rows = math.ceil(len(panels) / 2)
    figure, axes = plt.subplots(
        rows, 2, figsize=(10, rows * (0.3 * len(labels) + 0.9) + 0.5), sharey=True, squeeze=False
    )
    for ax in axes.flat[len(panels) :]:
        ax.remove()
    for ax, (title, panel) in zip(axes.flat, panels.items(), strict=False):
        heights = [labels.index(found.label) for found in panel]
        ax.errorbar(
            [f.mean for f in panel], heights, xerr=[f.half_width for f in panel], fmt="o", capsize=3, label="fastmeta"
        )
        theirs = [(f.published, height) for f, height in zip(panel, heights, strict=True) if f.published is not None]
        ax.plot(*zip(*theirs, strict=True), "D", color="C1", markerfacecolor="none", label="published, other data")
        for found, height in zip(panel, heights, strict=True):
            ax.annotate(
                f"{found.mean:.1f}", (found.mean, height), (0, 5), textcoords="offset points", ha="center", fontsize=8
            )
        ax.set(title=title, yticks=range(len(labels)), yticklabels=labels, ylim=(len(labels) - 0.5, -0.7))
        ax.grid(axis="y", color="0.9")
        ax.set_xlabel("accuracy on unseen alphabets (%)")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles[::-1], names[::-1], loc="outside lower center", ncols=2)
    save(figure, path)


def inner_steps(path: Path, panels: Mapping[str, Mapping[str, Mapping[int, float]]]) -> None:
    """For each title, for each of five labels: the error after so many inner steps; two learners, then papers' points."""
    figure, axes = plt.subplots(1, len(panels), figsize=(10, 4), sharey=True, squeeze=False)
    styles = ["C0o-", "C1s-", "C0x", "C0+", "C1+"]  # the papers' in the colour of their learner
    labels = list(dict.fromkeys(label for panel in panels.values() for label in panel))
    for ax, (title, panel) in zip(axes.flat, panels.items(), strict=True):
        for label, curve in panel.items():
            style = styles[labels.index(label)]
            ax.plot(list(curve), list(curve.values()), style, markerfacecolor="none", markersize=8, label=label)
            for point in curve.items() if style.endswith("-") else ():
                ax.annotate(f"{point[1]:.2f}", point, (6, 5), textcoords="offset points", fontsize=8)
        ax.set(title=title, xlabel="inner steps at test", xticks=(0, 1, 5, 10), xlim=(0, 11.5), yscale="log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.grid(axis="y", color="0.9")
    axes[0, 0].set_ylabel("mean squared error")
    handles, names = max((ax.get_legend_handles_labels() for ax in axes.flat), key=lambda found: len(found[0]))
    figure.legend(handles, names, loc="outside lower center", ncols=3)
    save(figure, path)


def runs(path: Path, errors: Mapping[str, Sequence[float]], mistaken: Sequence[tuple[str, Sequence[Tensor]]]) -> None:
    """The error of each run by label; below, with its run, each new drawing that was mistaken, the class that it is, and that taken."""
    columns = 6
    rows = math.ceil(len(mistaken) / columns)
    figure = plt.figure(figsize=(10, 3 + 0.95 * rows))
    above, below = figure.subfigures(2, 1, height_ratios=(3, max(0.95 * rows, 0.1)))
    ax = above.subplots()
    for label, of_run in errors.items():
        ax.plot(range(1, len(of_run) + 1), of_run, "o-", markersize=4, linewidth=1, label=label)
    ax.set(xlabel="run", ylabel="error (%)", ylim=(0, None), xticks=range(1, max(map(len, errors.values())) + 1))
    ax.legend(ncols=2)
    if rows:
        below.suptitle("drawn | is | was taken for", fontsize="medium")
        axes = below.subplots(rows, columns, squeeze=False)
        for ax in axes.flat:
            ax.set_axis_off()
        for ax, (name, images) in zip(axes.flat, mistaken, strict=False):
            line = torch.ones_like(images[0][:, :1])
            strip = torch.cat([images[0], line, images[1], line, images[2]], 1)
            ax.imshow(strip.numpy(), cmap="gray_r", interpolation="nearest")
            ax.set_title(name, fontsize=7, pad=2)
    save(figure, path)


def _image(ax: plt.Axes, image: Tensor, frame: str) -> None:
    ax.imshow(image[0], cmap="gray_r", interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set(visible=True, color=frame, linewidth=2)


def _smooth(losses: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Where stretches of 10 or more meta-iterations end, equally long on a logarithmic axis, and their means."""
    values, total = torch.tensor(losses), len(losses)
    first = min(total, max(10, total // 500))
    ends = torch.logspace(math.log10(first), math.log10(total), 40).round().long().unique()
    starts = torch.cat([torch.zeros(1, dtype=torch.long), ends[:-1]])
    return ends, torch.stack([values[a:b].mean() for a, b in zip(starts, ends, strict=True)])
