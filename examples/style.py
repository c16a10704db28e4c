"""How the pictures of the examples and of the benches look."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

plt.rcParams.update(
    {
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.prop_cycle": plt.cycler(color=["#0072b2", "#d55e00", "#009e73", "#cc79a7"]),
        "figure.constrained_layout.use": True,
        "legend.frameon": False,
        "svg.hashsalt": "fastmeta",
        "svg.fonttype": "none",  # text, which stays small and can be searched
    }
)


def save(figure: Figure, path: Path) -> None:
    """The same data give the same SVG."""
    metadata = {"Date": None} if path.suffix == ".svg" else None
    figure.savefig(path, dpi=100, metadata=metadata)
    plt.close(figure)
