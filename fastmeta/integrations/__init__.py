"""fastmeta in the programs of other libraries: modules with their names (`from fastmeta.integrations import learn2learn as l2l`),
and `accelerate(peer)`, which puts the ops into the library itself. None of them has to be installed."""

from ._accelerate import SUPPORTED, accelerate
from .recording import explain

__all__ = ["SUPPORTED", "accelerate", "explain"]
