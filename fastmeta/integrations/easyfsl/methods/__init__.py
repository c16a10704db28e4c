"""Few-shot classifiers that take one episode at a time: first its support, then queries. `fastmeta.ProtoNet` and
`fastmeta.MatchingNet` take all episodes at once."""

from ..._library import otherwise
from . import utils
from .few_shot_classifier import FewShotClassifier
from .matching_networks import MatchingNetworks
from .prototypical_networks import PrototypicalNetworks

__all__ = ["FewShotClassifier", "MatchingNetworks", "PrototypicalNetworks", "utils"]
__getattr__ = otherwise("easyfsl.methods", __all__)
