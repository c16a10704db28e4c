import copy
import pickle
import warnings

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
    many = NearestClassMean().fit(torch.ones(300, 3, dtype=torch.bfloat16), torch.zeros(300, dtype=torch.int64))
    assert many.counts_.item() == 300
    query = torch.randn(5, 3, requires_grad=True)
    assert model.predict(query).dtype == torch.int64 and set(model.predict(query).tolist()) <= {1, 4}
    assert torch.equal(model.predict_log_proba(query), model(query)) and not model.predict_proba(query).requires_grad
    model(query)[:, 0].sum().backward()
    assert query.grad.count_nonzero() and model.score(x, y) == model.score(x.numpy(), y.numpy())


def test_arrays_of_any_kind():
    """Whatever NumPy's strides, bytes, flags and dtypes."""
    x, y = randn(12, 4).numpy(), np.arange(12) % 3
    model, read_only = NearestClassMean().fit(x, y), x.copy()
    read_only.flags.writeable = False
    expected = model.predict(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for same in (
            read_only,
            x.astype(">f8"),
            x.astype(np.longdouble),
            x.astype(object),
            x.tolist(),
            np.asfortranarray(x),
        ):
            assert (model.predict(same) == expected).all()
        assert (model.predict(x[::-1]) == expected[::-1]).all() and model.predict(x[:0]).shape == (0,)
    whole = np.arange(8).reshape(4, 2)
    assert NearestClassMean().fit(whole, y[:4] > 1).predict_proba(whole).dtype == np.float64
    assert NearestClassMean().fit(whole.tolist(), ["b", "a"] * 2).predict([[0, 1], [6, 7]]).tolist() == ["b", "a"]


def test_it_is_an_estimator():
    """What scikit-learn's clone, searches and pipelines ask for; ties go to the first class; what raises changes nothing."""
    x, y = randn(12, 4).numpy(), np.arange(12) % 3
    model = NearestClassMean("cosine", temperature=2)
    assert not hasattr(model, "classes_") and not model.__sklearn_is_fitted__()
    assert NearestClassMean(**model.get_params()).get_params() == {"metric": "cosine", "temperature": 2.0}
    assert model.set_params(metric="euclidean").fit(x, y) is model and model.n_features_in_ == 4
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert (twin.predict_proba(x) == model.predict_proba(x)).all() and twin.metric == "euclidean"
    for wrong in ((x, y[:2]), (x * np.nan, y), (x, x[:, 0])):
        with pytest.raises(ValueError, match="NearestClassMean: "):
            model.fit(*wrong)
    np.testing.assert_allclose(model.means_, means(x, y))
    assert model.fit(x[:, :2], y).n_features_in_ == 2  # of others
    assert NearestClassMean().fit([[1.0], [-1.0]], ["b", "a"]).predict([[0.0]]) == ["a"]
    assert NearestClassMean().partial_fit(x, y, classes=range(9)).classes_.tolist() == [0, 1, 2]
    with torch.inference_mode():
        model.fit(x, y)
    assert model.partial_fit(x, y).counts_.tolist() == [8, 8, 8]


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
    model = NearestClassMean().fit(x, y)
    for call, kind, text in (
        (lambda: model.score(x, y[:1]), ValueError, r"y must have shape \[4\], got \[1\]"),
        (lambda: model.score(x, y[:, None]), ValueError, r"y must have shape \[4\], got \[4, 1\]"),
        (lambda: model.predict(x * torch.inf), ValueError, "x must be finite, got inf"),
        (lambda: model.predict(x.numpy() + 1j), ValueError, "x must be real numbers, got complex64"),
        (lambda: model.predict(model), TypeError, "x must be a dense array, .* got NearestClassMean"),
        (
            lambda: model.partial_fit(x, ["a"] * 4),
            ValueError,
            "y must be of the kind of the labels before, int64, got <U1",
        ),
        (lambda: model.partial_fit(x, y, classes=[0]), ValueError, "y must be among classes, got 1"),
        (lambda: model.fit(x, y / 0.0), ValueError, "y must be whole numbers or strings, got float32"),
        (lambda: model.fit(x[:, :0], y), ValueError, "x must hold at least one example and feature"),
        (lambda: model.set_params(k=1), ValueError, "the parameters must be metric or temperature, got k"),
    ):
        with pytest.raises(kind, match=f"NearestClassMean: {text}"):
            call()
