"""The ops in an installed library: which versions are known, what is exchanged there, and how it comes back."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from ._steps import active
from .easyfsl.methods.utils import compute_prototypes
from .higher._optimisers import step_groups
from .higher._recorded import recorded
from .learn2learn import algorithms
from .learn2learn.algorithms._recorded import clone_of_maml, clone_of_meta_sgd
from .learn2learn.nn import compute_prototypes as class_means
from .recording import recorded_scores
from .torchopt._recorded import listen, listener_of
from .torchopt.optim import plain_rate, step_on

SUPPORTED = {"learn2learn": ("0.2.0",), "higher": ("0.2.1",), "easyfsl": ("1.5.0",), "torchopt": ("0.7.3",)}

Exchange = tuple[Any, str, Any]  # owner, attribute, what it is inside
Original = tuple[Any, str, bool, Any]  # owner, attribute, whether the owner itself had it, what it was

_inside: dict[str, tuple[int, list[Original]]] = {}
_lock = threading.Lock()


@contextmanager
def accelerate(peer: ModuleType) -> Iterator[ModuleType]:
    """Inside, the library `peer` computes its inner steps and distances by fastmeta's ops; outside it is as it was.

        with accelerate(learn2learn):
            train()

    learn2learn: clones of `MAML` and `MetaSGD` record what they do, as those of `fastmeta.integrations` (see `explain`);
    `maml_update`, `meta_sgd_update`, the class means of `PrototypicalClassifier` and the loss of its scores. higher:
    `innerloop_ctx` records; the steps of torch.optim.SGD without momentum and weight decay. easyfsl: prototypes, the loss of
    `PrototypicalNetworks`. torchopt: the steps of a `MetaSGD` that is made inside, without further options, record. All else
    stays the library's own. For all threads.

    Errors: TypeError for what is not a module; ValueError for a library that is not in `SUPPORTED`, or not in that version.
    """
    name = _known(peer)
    with _lock:
        depth, originals = _inside.get(name, (0, []))
        _inside[name] = depth + 1, originals or _put_in(EXCHANGES[name]())
    try:
        yield peer
    finally:
        with _lock:
            depth, originals = _inside.pop(name)
            if depth > 1:
                _inside[name] = depth - 1, originals
            else:
                _take_out(originals)


def _known(peer: ModuleType) -> str:
    """The name of a library in a version that is supported."""
    if not isinstance(peer, ModuleType):
        raise TypeError(f"accelerate: peer must be a module, got {type(peer).__name__}")
    name = peer.__name__
    if name not in SUPPORTED:
        raise ValueError(f"accelerate: peer must be one of {', '.join(SUPPORTED)}, got {name}")
    version = getattr(peer, "__version__", None) or _installed(name)
    if version not in SUPPORTED[name]:
        raise ValueError(f"accelerate: {name} must be of version {' or '.join(SUPPORTED[name])}, got {version}")
    return name


@functools.cache  # it reads files
def _installed(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "no version"


def _put_in(exchanges: Sequence[Exchange]) -> list[Original]:
    originals = [(owner, name, name in vars(owner), vars(owner).get(name)) for owner, name, _ in exchanges]
    for owner, name, new in exchanges:
        setattr(owner, name, new)
    return originals


def _take_out(originals: Sequence[Original]) -> None:
    for owner, name, had, was in originals:
        if had:
            setattr(owner, name, was)
        else:
            delattr(owner, name)


def _learn2learn() -> list[Exchange]:
    found: list[Exchange] = []
    package = importlib.import_module("learn2learn.algorithms")
    for module, name in (("maml", "maml_update"), ("meta_sgd", "meta_sgd_update")):
        new = getattr(algorithms, name)
        found += [(importlib.import_module(f"learn2learn.algorithms.{module}"), name, new), (package, name, new)]
    protonet = importlib.import_module("learn2learn.nn.protonet")
    head, their_means = protonet.PrototypicalClassifier, protonet.compute_prototypes
    fit: Callable[..., Tensor] = head.fit_

    def by_op(self: Any, support: Tensor, labels: Tensor) -> Tensor:
        if self._compute_prototypes is not their_means:
            return fit(self, support, labels)
        means = class_means(support, labels)
        found: Tensor = head.normalize(means) if self.normalize else means
        self.prototypes = found
        return found

    forward: Callable[..., Tensor] = head.forward
    distance = head.euclidean_distance

    def by_loss(self: Any, x: Tensor) -> Tensor:
        if self.prototypes is None or self.distance is not distance or not isinstance(x, Tensor):
            return forward(self, x)
        found = recorded_scores(head.normalize(x) if self.normalize else x, self.prototypes, "sqeuclidean")
        return forward(self, x) if found is None else found

    for module, name, of in (("maml", "MAML", clone_of_maml), ("meta_sgd", "MetaSGD", clone_of_meta_sgd)):
        learner = getattr(importlib.import_module(f"learn2learn.algorithms.{module}"), name)
        found.append((learner, "clone", _recording(learner, of)))
    return [*found, (head, "fit_", by_op), (head, "forward", by_loss)]


def _recording(learner: Any, of: Callable[..., Any]) -> Callable[..., Any]:
    plain: Callable[..., Any] = learner.clone

    def clone(self: Any, *args: Any, **named: Any) -> Any:
        options = [*args, *(named.get(name) for name in ("first_order", "allow_unused", "allow_nograd")[len(args) :])]
        recorded = of(self, learner, *(options if of is clone_of_maml else ()))
        return plain(self, *args, **named) if recorded is None else recorded

    return clone


def _higher() -> list[Exchange]:
    sgd = importlib.import_module("higher.optim").DifferentiableSGD
    update: Callable[..., None] = sgd._update

    def by_ops(self: Any, grouped_grads: list[list[Tensor | None]], **kwargs: Any) -> None:
        if any(active(group[name]) for group in self.param_groups for name in ("momentum", "weight_decay")):
            return update(self, grouped_grads, **kwargs)
        step_groups(self.param_groups, grouped_grads)

    package = importlib.import_module("higher")
    plain: Callable[..., Any] = package.innerloop_ctx

    @contextmanager
    def innerloop_ctx(
        model: Any, opt: Any, device: Any = None, copy_initial_weights: bool = True, override: Any = None,
        track_higher_grads: bool = True,
    ) -> Iterator[Any]:  # fmt: skip
        found = recorded(model, opt, override, copy_initial_weights, track_higher_grads) if device is None else None
        with (
            plain(model, opt, device, copy_initial_weights, override, track_higher_grads)
            if found is None
            else nullcontext(found) as both
        ):
            yield both

    return [(sgd, "_update", by_ops), (package, "innerloop_ctx", innerloop_ctx)]


def _easyfsl() -> list[Exchange]:
    classifier = importlib.import_module("easyfsl.methods.few_shot_classifier")
    networks = importlib.import_module("easyfsl.methods.prototypical_networks").PrototypicalNetworks
    forward: Callable[..., Tensor] = networks.forward

    def by_loss(self: Any, query_images: Tensor) -> Tensor:
        if type(self) is not networks or self.use_softmax:
            return forward(self, query_images)
        features = self.compute_features(query_images)
        self._raise_error_if_features_are_multi_dimensional(features)
        found = recorded_scores(features, self.prototypes, "euclidean")
        return self.l2_distance_to_prototypes(features) if found is None else found

    return [(classifier, "compute_prototypes", compute_prototypes), (networks, "forward", by_loss)]


def _torchopt() -> list[Exchange]:
    sgd = importlib.import_module("torchopt.optim.meta.sgd").MetaSGD
    init: Callable[..., None] = sgd.__init__
    step: Callable[..., None] = sgd.step

    def with_rate(
        self: Any, module: Any, lr: Any, momentum: float = 0.0, weight_decay: float = 0.0,
        dampening: float = 0.0, nesterov: bool = False, moment_requires_grad: bool = True, maximize: bool = False,
    ) -> None:  # fmt: skip
        init(self, module, lr, momentum, weight_decay, dampening, nesterov, moment_requires_grad, maximize)
        if plain_rate(lr, momentum, weight_decay, dampening, nesterov, maximize):
            self._plain_rate = lr
            self._listener = listen(module, lr) if type(lr) is float and type(self) is sgd else None

    def by_ops(self: Any, loss: Tensor) -> None:
        listener = getattr(self, "_listener", None)
        if listener is not None and len(self.param_containers_groups) == 1 and listener.step(loss):
            return None
        if listener is not None:
            listener.settle("a step that is not recorded")
        if not hasattr(self, "_plain_rate"):
            return step(self, loss)
        for containers in self.param_containers_groups:
            step_on(containers, loss, self._plain_rate)

    def recover(target: Any, state: Any) -> None:
        listener = listener_of(target) if isinstance(target, nn.Module) and hasattr(state, "params") else None
        if listener is not None:
            listener.put_back(state)
        put_back(target, state)

    package, utils = importlib.import_module("torchopt"), importlib.import_module("torchopt.utils")
    put_back: Callable[..., None] = utils.recover_state_dict
    both = [(owner, "recover_state_dict", recover) for owner in (package, utils)]
    return [(sgd, "__init__", with_rate), (sgd, "step", by_ops), *both]


EXCHANGES: dict[str, Callable[[], list[Exchange]]] = {
    "learn2learn": _learn2learn,
    "higher": _higher,
    "easyfsl": _easyfsl,
    "torchopt": _torchopt,
}
