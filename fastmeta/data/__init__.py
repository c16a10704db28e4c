"""Few-shot data: tasks as tensors with a leading task axis, drawn a whole batch at a time on any device."""

from .episodes import Episodes, sample_episodes
from .glyphs import Glyphs
from .omniglot import Omniglot
from .sinusoid import Sinusoid
from .task_generator import TaskGenerator
from .task_sampler import TaskSampler

__all__ = ["Episodes", "Glyphs", "Omniglot", "Sinusoid", "TaskGenerator", "TaskSampler", "sample_episodes"]
