"""Few-shot data: tasks as tensors with a leading task axis, drawn a whole batch at a time on any device."""

from .episodes import Episodes, sample_episodes
from .glyphs import Glyphs
from .omniglot import Omniglot
from .sinusoid import Sinusoid

__all__ = ["Episodes", "Glyphs", "Omniglot", "Sinusoid", "sample_episodes"]
