import pytest
import torch

import fastmeta


def test_equals_the_dense_hessian():
    a = torch.randn(4, 4, dtype=torch.float64)
    x, v = torch.randn(4, dtype=torch.float64), torch.randn(4, dtype=torch.float64)

    def fn(x):
        return (a @ x).tanh().pow(2).sum()

    torch.testing.assert_close(fastmeta.hvp(fn, x, v), torch.func.hessian(fn)(x) @ v)


def test_trees_and_fastmeta_inside():
    params = {"w": torch.randn(3, 2, dtype=torch.float64), "rest": [torch.randn(3, dtype=torch.float64)]}
    vectors = {"w": torch.randn(3, 2, dtype=torch.float64), "rest": [torch.randn(3, dtype=torch.float64)]}
    x, y = torch.randn(5, 2, dtype=torch.float64), torch.tensor([0, 1, 2, 1, 0])
    ours = fastmeta.hvp(lambda p: fastmeta.mlp_loss([p["w"], p["rest"][0]], x, y), params, vectors)
    expected = fastmeta.mlp_hvp([params["w"], params["rest"][0]], [vectors["w"], vectors["rest"][0]], x, y)
    torch.testing.assert_close([ours["w"], ours["rest"][0]], expected)


def test_works_without_grad_mode():
    with torch.no_grad():
        assert fastmeta.hvp(lambda x: x.pow(3).sum(), torch.ones(2), torch.ones(2)).tolist() == [6.0, 6.0]


def test_errors():
    x = torch.ones(2)
    with pytest.raises(ValueError, match="hvp: vectors must have the structure of params"):
        fastmeta.hvp(lambda p: p.sum(), x, [x])
    with pytest.raises(ValueError, match=r"hvp: vectors\[0\] must have the shape of params\[0\], \[2\], got \[3\]"):
        fastmeta.hvp(lambda p: p.sum(), x, torch.ones(3))
    with pytest.raises(ValueError, match=r"hvp: fn must return a tensor with one element, got shape \[2\]"):
        fastmeta.hvp(lambda p: p * 2, x, x)
    with pytest.raises(ValueError, match="hvp: params must hold at least one tensor, got none"):
        fastmeta.hvp(lambda p: x.sum(), [], [])
