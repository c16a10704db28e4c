"""The names of easyfsl 1.5.0 that an episodic program with prototypical or matching networks calls."""

from .._library import otherwise
from . import methods

__all__ = ["methods"]
__getattr__ = otherwise("easyfsl", __all__)
