import numpy as np
import pytest
import torch

from fastmeta.heads import NearestClassMean
from harness.cases import randn

pytestmark = pytest.mark.cpu


def means(x, y):
    return np.stack([x[y == k].mean(0) for k in np.unique(y)])


@pytest.mark.parametrize("names", [np.array(["b", "c", "a", "d"]), np.array([9, 2, -1, 40])])
def test_fit_and_partial_fit_find_the_means_of_all_examples(names):
    x, y = randn(30, 6).numpy(), names[np.r_[0:3, np.arange(27) % 3]]
    more, z = randn(12, 6).numpy(), names[[1, 3] * 6]
    model = NearestClassMean().fit(more, z).fit(x, y)
    np.testing.assert_allclose(model.means_, means(x, y))
    model.partial_fit(more, z).partial_fit(more[:1] + 9, z[:1])
    both, of_both = np.r_[x, more, more[:1] + 9], np.r_[y, z, z[:1]]
    np.testing.assert_allclose(model.means_, means(both, of_both))
    assert model.classes_.tolist() == sorted(names.tolist())
    distance = np.linalg.norm(both[:, None] - means(both, of_both), axis=-1)
    predicted = model.predict(both)
    assert (predicted == model.classes_[distance.argmin(1)]).all() and predicted.dtype == names.dtype
    assert model.score(both, of_both) == (predicted == of_both).mean()
    np.testing.assert_allclose(model.predict_proba(both), np.exp(-distance) / np.exp(-distance).sum(1, keepdims=True))
    np.testing.assert_allclose(np.exp(model.predict_log_proba(both)), model.predict_proba(both))


def test_tensors_in_tensors_out():
    x, y = torch.randn(8, 3), torch.tensor([4, 1] * 4)
    model = NearestClassMean("cosine", temperature=0.1).fit(x, y)
    query = torch.randn(5, 3, requires_grad=True)
    assert model.predict(query).dtype == torch.int64 and set(model.predict(query).tolist()) <= {1, 4}
    assert torch.equal(model.predict_log_proba(query), model(query)) and not model.predict_proba(query).requires_grad
    model(query)[:, 0].sum().backward()
    assert query.grad.count_nonzero() and model.score(x, y) == model.score(x.numpy(), y.numpy())


def test_errors():
    x, y = torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
    with pytest.raises(ValueError, match="NearestClassMean: fit must come before"):
        NearestClassMean().predict(x)
    with pytest.raises(ValueError, match=r"NearestClassMean: y must have shape \[4\], got \[3\]"):
        NearestClassMean().fit(x, y[:3])
    with pytest.raises(ValueError, match="NearestClassMean: x must have 3 features"):
        NearestClassMean().fit(x, y).predict(x[:, :2])
    with pytest.raises(ValueError, match="NearestClassMean: x must hold at least one example"):
        NearestClassMean().fit(x[:0], y[:0])
    with pytest.raises(ValueError, match="NearestClassMean: metric must be one of"):
        NearestClassMean("manhattan")
