"""A decoder-only transformer of any size, as GPT-2 is one, without biases."""

from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


def gpt(
    vocabulary: int, context: int = 64, layers: int = 4, heads: int = 4, width: int = 128, dropout: float = 0.0
) -> nn.Module:
    """Token and position embeddings, `layers` pre-norm blocks of attention and a GELU network, a linear output.

    Tokens int64 (batch, time), time at most `context`, become logits (batch, time, vocabulary). Of the
    12·width² weights of a block, 4 are `attention` and 8 `mlp`. Weights start at N(0, 0.02²), those that write
    into the residual stream, `*.projection`, at N(0, 0.02² / (2·layers)).

    Other than in GPT-2 the output does not share its weight with the token embedding: a shared one could only be
    pruned in both roles at once, and embeddings are not pruned by default. Linear layers and norms have no biases.

    Args:
        vocabulary: number of different tokens.
        context: largest number of tokens in a row.
        layers: number of blocks.
        heads: attention heads of a block.
        width: numbers per token between the blocks, a multiple of `heads`.
        dropout: probability in [0, 1), after the embeddings, in attention and before each addition.

    Raises:
        ValueError: for sizes that cannot work.

    Source: Radford et al., Language Models are Unsupervised Multitask Learners (2019), section 2.3; without biases as
    in nanoGPT (github.com/karpathy/nanoGPT), `bias = False`.

    >>> network = gpt(vocabulary=65)
    >>> sum(weight.numel() for weight in network.blocks.parameters() if weight.dim() == 2)
    786432
    >>> network(torch.zeros(2, 10, dtype=torch.int64)).shape
    torch.Size([2, 10, 65])
    """
    _check(heads=heads, width=width, vocabulary=vocabulary, context=context, layers=layers)
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout}, expected 0 <= dropout < 1: set model.network.dropout=0.0 for none")
    return _draw(GPT(vocabulary, context, layers, heads, width, dropout), layers)


class GPT(nn.Module):
    """The network that `gpt` makes; `blocks` are what is sharded."""

    def __init__(self, vocabulary: int, context: int, layers: int, heads: int, width: int, dropout: float) -> None:
        super().__init__()
        self.context, self.heads, self.dropout = context, heads, dropout
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(heads, width, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width, bias=False)
        self.output = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens int64 (batch, time) to logits (batch, time, vocabulary); those at a time see no later token."""
        time = tokens.shape[1]
        if time > self.context:
            raise ValueError(
                f"{time} tokens in a row, expected at most context={self.context}: "
                "set data.context and model.network.context to the same number"
            )
        stream = self.drop(self.tokens(tokens) + self.positions(torch.arange(time, device=tokens.device)))
        for block in self.blocks:
            stream = block(stream)
        return self.output(self.norm(stream))

    def tensor_parallel_plan(self, processes: int) -> dict[str, Any]:
        """Which layers are divided among tensor-parallel processes, and how; see `sharding.shard`."""
        from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel

        if self.heads % processes:
            raise ValueError(
                f"{self.heads} heads do not divide by {processes} tensor-parallel processes, expected a multiple: "
                "set model.network.heads or the strategy's tensor_parallel_size"
            )
        if self.dropout:
            raise ValueError(
                f"dropout is {self.dropout} with {processes} tensor-parallel processes, which would draw differently "
                "what they should drop alike: set model.network.dropout=0.0"
            )
        first, second = ("attention.qkv", "mlp.hidden"), ("attention.projection", "mlp.projection")
        plan = {f"blocks.*.{name}": ColwiseParallel() for name in first}
        return plan | {f"blocks.*.{name}": RowwiseParallel() for name in second}


class Block(nn.Module):
    """Attention, then a network on each token; both read a normalised stream (batch, time, width) and add to it."""

    def __init__(self, heads: int, width: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, bias=False)
        self.attention = Attention(heads, width, dropout)
        self.mlp_norm = nn.LayerNorm(width, bias=False)
        self.mlp = MLP(width, dropout)

    def forward(self, stream: Tensor) -> Tensor:
        """(batch, time, width) to the same."""
        stream = stream + self.attention(self.attention_norm(stream))
        return stream + self.mlp(self.mlp_norm(stream))


class Attention(nn.Module):
    """Causal self-attention, (batch, time, width) to the same.

    The rows of `qkv` lie head by head, within a head query, key and value: so a slice of them is a number of whole
    heads, and tensor parallelism may divide them.
    """

    def __init__(self, heads: int, width: int, dropout: float) -> None:
        super().__init__()
        self.head_width, self.dropout = width // heads, dropout
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.projection = nn.Linear(width, width, bias=False)
        self.drop = nn.Dropout(dropout)

    def forward(self, stream: Tensor) -> Tensor:
        """(batch, time, width) to the same; the number of heads is found from what `qkv` returns."""
        heads = self.qkv(stream).unflatten(-1, (-1, 3, self.head_width))  # (batch, time, heads, 3, head width)
        query, key, value = heads.permute(3, 0, 2, 1, 4)
        dropout = self.dropout if self.training else 0.0
        read = scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        return self.drop(self.projection(read.transpose(1, 2).flatten(2)))


class MLP(nn.Module):
    """Four times as wide in between, with GELU: (batch, time, width) to the same."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, 4 * width, bias=False)
        self.gelu = nn.GELU()
        self.projection = nn.Linear(4 * width, width, bias=False)
        self.drop = nn.Dropout(dropout)

    def forward(self, stream: Tensor) -> Tensor:
        """(batch, time, width) to the same."""
        return self.drop(self.projection(self.gelu(self.hidden(stream))))


def _draw(network: GPT, layers: int) -> GPT:
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            residual = name.endswith("projection")
            nn.init.normal_(module.weight, std=0.02 / sqrt(2 * layers) if residual else 0.02)
    return network


def _check(*, heads: int, width: int, **sizes: int) -> None:
    for name, size in {"heads": heads, "width": width, **sizes}.items():
        if size < 1:
            raise ValueError(f"{name} is {size}, expected at least 1: set model.network.{name}=1 or more")
    if width % heads:
        raise ValueError(
            f"width {width} does not divide by {heads} heads, expected a multiple: "
            f"set model.network.width={-(-width // heads) * heads}, or another model.network.heads"
        )
