from __future__ import annotations

from torch import Tensor, nn

from .. import _check
from .._ask import OF_SUPPORT, ask
from .._autograd import is_autocast, without_autocast
from .._dispatch import LOW_PRECISION
from ..distance.prototypes import prototypes
from ..reference.mahalanobis import covariance_rows, mahalanobis_log_softmax
from . import _arguments
from ._episode import ways_of
from ._of_features import OfFeatures


class MahalanobisNet(OfFeatures):
    r"""log p(y = k | x) = log_softmax_k(-(f(x) - c_k)' Q_k^-1 (f(x) - c_k) / temperature): ProtoNet with a metric of each class.

    c_k is the mean of f over the n_k support examples of class k, Q_k = l_k S_k + (1 - l_k) S + beta I with l_k = n_k / (n_k + 1), S_k
    their covariance (over n_k - 1; 0 of one example) and S that of the whole support of the task.

    `encoder`, `num_classes`: as in `ProtoNet`. `beta`: positive. `temperature`: as in `ProtoNet`; the paper's 1/2 in front of the
    distance is temperature=2, its authors' program has 1. The network that adapts the encoder to a task is not part of this.

        # support_x [T, S, ...], support_y [T, S], query_x [T, Q, ...]
        learner(support_x, support_y, query_x)  # log p [T, Q, N]
        learner.loss(support_x, support_y, query_x, query_y)  # mean [T]

    In PyTorch, without kernels but for the means. With R = 2 S where 4 S <= D, else R = D, each class has one Cholesky factor [R, R]: about
    T N R (R D + 2 Q D) multiply-adds and T N (2 S + Q + R) D numbers. Differentiable to any order. Features of float16 and bfloat16
    are compared in float32. Where a covariance is too large beside beta for its precision, its task is NaN.

    Source: Bateni et al. 2020, Improved Few-Shot Visual Classification, arXiv:1912.03432.
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        beta: float = 1.0,
        temperature: float | Tensor = 1.0,
        num_classes: int | None = None,
    ) -> None:
        super().__init__(encoder, temperature, num_classes)
        self.beta = _arguments.number("MahalanobisNet", "beta", beta, positive=True)

    def _predict(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        ways = ways_of(self._name, self.num_classes, support_y)
        support, query = self._features(support_x, query_x)
        temperature = _check.scalar(self._name, "temperature", self.temperature)
        _check.positive(self._name, "temperature", temperature, query)
        dtype = query.dtype
        with without_autocast(query):
            if dtype in LOW_PRECISION:
                support, query = support.float(), query.float()
            if isinstance(temperature, Tensor):
                temperature = temperature.to(query.dtype)
            centres = ask(self._name, prototypes, OF_SUPPORT, support, support_y, ways)
            rows = covariance_rows(support, support_y, centres)
            found = mahalanobis_log_softmax(query, centres, rows, temperature, self.beta)
        return found if is_autocast(query.device.type) else found.to(dtype)
