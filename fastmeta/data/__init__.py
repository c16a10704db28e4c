"""Few-shot data: tasks as tensors with a leading task axis, drawn a whole batch at a time on any device."""

from .episodes import Episodes, sample_episodes
from .glyphs import Glyphs
from .image_folder import ImageFolder, image_folder
from .omniglot import Omniglot
from .sinusoid import Sinusoid
from .task_generator import TaskGenerator
from .task_sampler import TaskSampler

__all__ = [
    "Episodes",
    "Glyphs",
    "ImageFolder",
    "Omniglot",
    "Sinusoid",
    "TaskGenerator",
    "TaskSampler",
    "image_folder",
    "sample_episodes",
]
