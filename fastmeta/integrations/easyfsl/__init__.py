"""The names of easyfsl 1.5.0 that an episodic program with prototypical or matching networks calls; the others are the installed
library's."""

from .._library import otherwise
from . import methods, samplers

__all__ = ["methods", "samplers"]
__getattr__ = otherwise("easyfsl", __all__)
