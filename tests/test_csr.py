"""Sparse kernels against the dense ones that they stand for, and against numerical derivatives."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from lt_lightning.fit.csr import Pattern, conv2d, linear


def draw(*shape, seed=0, **options):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64, **options)


def mask_of(*shape, density, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < density


def results(function, inputs, weight, bias, gradient):
    """Output and gradients; each leaf is a new one."""
    leaves = [None if each is None else each.detach().clone().requires_grad_() for each in (inputs, weight, bias)]
    output = function(*leaves)
    output.backward(gradient)
    return [output.detach(), *(leaf.grad for leaf in leaves if leaf is not None)]


def assert_alike(sparse, dense, pattern):
    dense[2] = pattern.gather(dense[2])
    for one, other in zip(sparse, dense, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    before=st.lists(st.integers(1, 4), max_size=3),
    density=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    seed=st.integers(0, 9),
    with_bias=st.booleans(),
)
def test_linear_is_that_of_the_masked_weight(rows, columns, before, density, seed, with_bias):
    pattern = Pattern(mask := mask_of(rows, columns, density=density, seed=seed))
    inputs, bias, gradient = draw(*before, columns), draw(rows, seed=2) if with_bias else None, draw(*before, rows)
    weight = draw(rows, columns, seed=1) * mask
    sparse = results(lambda x, w, b: linear(x, w, b, pattern), inputs, pattern.gather(weight), bias, gradient)
    assert_alike(sparse, results(F.linear, inputs, weight, bias, gradient), pattern)


@given(
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    size=st.tuples(st.integers(3, 6), st.integers(3, 6)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    density=st.sampled_from([0.1, 0.5]),
    samples=st.integers(1, 3),
)
def test_conv2d_is_that_of_the_masked_weight(channels, size, kernel, stride, padding, density, samples):
    pattern = Pattern(mask := mask_of(channels[1], channels[0], *kernel, density=density))
    weight, bias, inputs = (
        draw(*mask.shape, seed=1) * mask,
        draw(channels[1], seed=2),
        draw(samples, channels[0], *size),
    )

    def dense(x, w, b):
        return F.conv2d(x, w, b, stride, padding)

    gradient = draw(*dense(inputs, weight, bias).shape, seed=3)
    values = pattern.gather(weight)
    sparse = results(lambda x, w, b: conv2d(x, w, b, pattern, stride, padding), inputs, values, bias, gradient)
    assert_alike(sparse, results(dense, inputs, weight, bias, gradient), pattern)


def test_derivatives_are_those_of_differences():
    pattern = Pattern(mask_of(3, 4, density=0.5))
    values = draw(len(pattern.gather(torch.zeros(3, 4))), requires_grad=True)
    inputs, bias = draw(2, 4, requires_grad=True), draw(3, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w, b: linear(x, w, b, pattern), (inputs, values, bias))


def test_a_second_derivative_is_refused():
    pattern = Pattern(torch.ones(2, 2).bool())
    inputs = draw(1, 2, requires_grad=True)
    output = linear(inputs, draw(4, requires_grad=True), None, pattern).square().sum()
    (first,) = torch.autograd.grad(output, inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_activations_stay_by_features_from_layer_to_layer_and_may_be_changed_in_place():
    one, two = Pattern(mask_of(5, 4, density=0.5)), Pattern(mask_of(3, 5, density=0.5))
    values = [torch.ones(int(pattern._rows[-1]), requires_grad=True) for pattern in (one, two)]
    hidden = linear(torch.ones(6, 4), values[0], None, one).relu_()
    assert hidden.t().is_contiguous()
    assert linear(hidden, values[1], None, two).t().is_contiguous()


def test_what_is_gathered_is_scattered_to_its_place():
    mask = mask_of(3, 4, 2, 2, density=0.3)
    weight = draw(3, 4, 2, 2)
    assert Pattern(mask).scatter(Pattern(mask).gather(weight)).equal(weight * mask)


def test_a_matrix_follows_its_values_and_no_others():
    pattern = Pattern(torch.tensor([[True, False], [True, True]]))
    values, others = torch.ones(3), torch.full((3,), 5.0)
    pattern.matrix(values)
    values.mul_(2)
    assert pattern.matrix(values).to_dense().tolist() == [[2, 0], [2, 2]]
    assert pattern.matrix(others).to_dense().tolist() == [[5, 0], [5, 5]]
    assert pattern.transpose(values).to_dense().tolist() == [[2, 2], [0, 2]]
    assert copy.deepcopy(pattern).matrix(others).to_dense().tolist() == [[5, 0], [5, 5]]


def test_a_change_of_the_values_before_the_backward_pass_is_noticed():
    pattern = Pattern(torch.ones(2, 2).bool())
    values = torch.ones(4, requires_grad=True)
    output = linear(torch.ones(1, 2, requires_grad=True), values, None, pattern).sum()
    with torch.no_grad():
        values.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.backward()


def test_the_same_product_has_the_same_bits():
    pattern = Pattern(mask_of(64, 96, density=0.1))
    values = torch.randn(int(pattern._rows[-1]))
    inputs = torch.randn(33, 96)
    gradient = torch.randn(33, 64)
    first = results(lambda x, w, b: linear(x, w, b, pattern), inputs, values, None, gradient)
    for _ in range(5):
        again = results(lambda x, w, b: linear(x, w, b, pattern), inputs.clone(), values, None, gradient)
        assert all(one.equal(other) for one, other in zip(first, again, strict=True))
