"""Linear layers and convolutions that multiply by kept weights alone, on torch's kernels for compressed sparse rows.

A weight is a flat tensor of its kept values, in the order in which they lie in the dense one, and a `Pattern` of where
they lie. Activations are multiplied as [features, samples], which is how the kernels are fast: so `linear` answers with
a tensor that lies in memory by features, and the next layer takes it as it is.
"""

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


class Pattern:
    """Where the kept weights of a matrix lie, row by row, and where those of its transpose do.

    Args:
        mask: bool [rows, columns, ...] on the CPU; further dimensions count as columns.

    >>> pattern = Pattern(torch.tensor([[True, False], [True, True]]))
    >>> pattern.gather(torch.tensor([[1.0, 2.0], [3.0, 4.0]])), pattern.scatter(torch.tensor([1.0, 3.0, 4.0]))
    (tensor([1., 3., 4.]), tensor([[1., 0.],
            [3., 4.]]))
    """

    def __init__(self, mask: Tensor) -> None:
        self.shape = mask.shape
        flat = mask.reshape(len(mask), -1)
        self.size = torch.Size(flat.shape)
        rows, columns = flat.nonzero(as_tuple=True)
        order = columns.argsort(stable=True)
        self._rows, self._columns = _starts(flat.sum(1)), columns.int()  # MKL has 32 bits, others would be converted
        self._columns_of_transpose, self._rows_of_transpose = _starts(flat.sum(0)), rows[order].int()
        self._order = order.int()
        self._matrix: Tensor | None = None
        self._transpose: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_matrix": None, "_transpose": None}  # sparse tensors cannot be copied

    def gather(self, dense: Tensor) -> Tensor:
        """The kept values of a tensor of the mask's shape; a copy."""
        return dense.detach().reshape(-1).index_select(0, self._places())

    def scatter(self, values: Tensor) -> Tensor:
        """The tensor of the mask's shape with these kept values, and zeros elsewhere."""
        dense = values.new_zeros(self.size.numel())
        return dense.index_copy_(0, self._places(), values.detach()).view(self.shape)

    def matrix(self, values: Tensor) -> Tensor:
        """The sparse matrix [rows, columns] that shares the memory of its values, so that it follows them."""
        cached = self._matrix
        if cached is None or cached.values().data_ptr() != values.data_ptr() or cached.dtype != values.dtype:
            cached = self._matrix = _csr(self._rows, self._columns, values.detach(), self.size)
        return cached

    def transpose(self, values: Tensor) -> Tensor:
        """The sparse matrix [columns, rows] of these values, until it is asked for again."""
        cached = self._transpose
        if cached is None or cached.dtype != values.dtype:
            size = torch.Size(reversed(self.size))
            empty = torch.empty(len(self._order), dtype=values.dtype)
            cached = self._transpose = _csr(self._columns_of_transpose, self._rows_of_transpose, empty, size)
        torch.index_select(values.detach(), 0, self._order, out=cached.values())
        return cached

    def _places(self) -> Tensor:
        rows = torch.arange(self.size[0]).repeat_interleave(self._rows.diff().long())
        return rows * self.size[1] + self._columns


def linear(inputs: Tensor, values: Tensor, bias: Tensor | None, pattern: Pattern) -> Tensor:
    """`torch.nn.functional.linear` with a sparse weight: the same up to the order in which floats are added.

    Args:
        inputs: [..., columns], on the CPU, single or double precision; fastest if it lies in memory by columns.
        values: [kept], the kept weights.
        bias: [rows], or None.
        pattern: where the kept weights lie in [rows, columns].

    Returns:
        [..., rows], which lies in memory by rows: where a dense one could be flattened by `view`, write `reshape`.

    >>> pattern = Pattern(torch.tensor([[True, False], [False, True]]))
    >>> linear(torch.tensor([[1.0, 2.0]]), torch.tensor([3.0, 4.0]), None, pattern)
    tensor([[3., 8.]])
    """
    outputs = _Product.apply(inputs.reshape(-1, inputs.shape[-1]), values, bias, pattern)
    return outputs if inputs.dim() == 2 else outputs.view(*inputs.shape[:-1], pattern.size[0])


def conv2d(
    inputs: Tensor,
    values: Tensor,
    bias: Tensor | None,
    pattern: Pattern,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
) -> Tensor:
    """`torch.nn.functional.conv2d` with a sparse weight, by unfolding: every window of the input becomes a column.

    Args:
        inputs: [samples, channels, height, width], or one sample of these, as for `linear`.
        values: [kept], the kept weights.
        bias: [out_channels], or None.
        pattern: where the kept weights lie in [out_channels, channels, kernel height, kernel width].
        stride: of the windows, down and across.
        padding: zeros around the input, above and below, left and right.

    >>> pattern = Pattern(torch.tensor([[[[True, False], [False, True]]]]))
    >>> conv2d(torch.arange(9.0).view(1, 1, 3, 3), torch.tensor([1.0, 10.0]), None, pattern)
    tensor([[[[40., 51.],
              [73., 84.]]]])
    """
    if inputs.dim() == 3:
        return conv2d(inputs[None], values, bias, pattern, stride, padding)[0]
    kernel = (pattern.shape[2], pattern.shape[3])
    windows = _Unfold.apply(inputs.permute(1, 2, 3, 0), kernel, stride, padding)
    high, wide = windows.shape[3:5]
    product = _Product.apply(windows.reshape(pattern.size[1], -1).t(), values, bias, pattern)
    return product.t().view(-1, high, wide, len(inputs)).permute(3, 0, 1, 2).contiguous()


class _Product(torch.autograd.Function):
    """inputs [samples, columns] → [samples, rows], both best by features in memory."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, values: Tensor, bias: Tensor | None, pattern: Pattern) -> Tensor:
        features, matrix = inputs.t().contiguous(), pattern.matrix(values)
        outputs = torch.empty_strided((len(inputs), len(matrix)), (1, len(inputs)), dtype=values.dtype)
        if bias is None:
            torch.mm(matrix, features, out=outputs.t())
        else:
            torch.addmm(bias[:, None].expand(len(matrix), len(inputs)), matrix, features, out=outputs.t())
        ctx.save_for_backward(features, values)
        ctx.pattern = pattern
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        features, values = ctx.saved_tensors
        towards = gradient.t().contiguous()
        to_inputs = to_values = to_bias = None
        if ctx.needs_input_grad[0]:
            to_inputs = torch.mm(ctx.pattern.transpose(values), towards).t()
        if ctx.needs_input_grad[1]:
            matrix = ctx.pattern.matrix(values)
            to_values = torch.sparse.sampled_addmm(matrix, towards, features.t(), beta=0.0).values()
        if ctx.needs_input_grad[2]:
            to_bias = towards.sum(1)
        return to_inputs, to_values, to_bias, None


class _Unfold(torch.autograd.Function):
    """[channels, height, width, samples] → [channels, *kernel, rows, columns, samples] of windows."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, kernel: Any, stride: Any, padding: Any) -> Tensor:
        ctx.sizes = inputs.shape, kernel, stride, padding
        padded = F.pad(inputs, (0, 0, padding[1], padding[1], padding[0], padding[0])).contiguous()
        windows = padded.unfold(1, kernel[0], stride[0]).unfold(2, kernel[1], stride[1])
        return windows.permute(0, 4, 5, 1, 2, 3).contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (channels, height, width, samples), kernel, stride, (above, left) = ctx.sizes
        padded = gradient.new_zeros(channels, height + 2 * above, width + 2 * left, samples)
        rows, columns = gradient.shape[3:5]
        for y in range(kernel[0]):
            for x in range(kernel[1]):
                place = padded[:, y : y + stride[0] * rows : stride[0], x : x + stride[1] * columns : stride[1]]
                place += gradient[:, y, x]
        return padded[:, above : above + height, left : left + width], None, None, None


def _starts(counts: Tensor) -> Tensor:
    """Where each row begins, and where the last one ends."""
    return F.pad(counts.cumsum(0), (1, 0)).int()


def _csr(starts: Tensor, places: Tensor, values: Tensor, size: torch.Size) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(beta state|invariant checks).*")
        return torch.sparse_csr_tensor(starts, places, values, size, check_invariants=False)
