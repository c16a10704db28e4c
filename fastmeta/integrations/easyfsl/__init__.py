"""The names of easyfsl 1.5.0 that an episodic program with prototypical or matching networks calls."""

from .._arguments import missing
from . import methods

__all__ = ["methods"]
__getattr__ = missing("easyfsl", __all__)
