"""What the processes of tests/test_sharded.py do, and how problems are laid over them."""

from functools import cache

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from lt_lightning import TicketFile, criteria, masks, scopes, sharded

PLACEMENTS = {"0": Shard(0), "1": Shard(1), "r": Replicate()}


@cache
def mesh_of(shape):
    return init_device_mesh("cpu", shape, mesh_dim_names=("dp", "tp")[: len(shape)])


def lay(full, mesh_shape, letters):
    """A full tensor, laid out by torch itself; no letters: plain."""
    if not letters:
        return full.clone()
    return distribute_tensor(full, mesh_of(mesh_shape), [PLACEMENTS[letter] for letter in letters])


def whole(tensors):
    """The full tensors, gathered by torch itself."""
    return {n: t.full_tensor() if isinstance(t, DTensor) else t for n, t in tensors.items()}


def turned(tensor):
    """The same tensor, with a part that is not contiguous."""
    part = sharded.local(tensor)
    return sharded.wrap(part.transpose(0, -1).contiguous().transpose(0, -1), tensor) if part.dim() > 1 else tensor


def solve(scores, before, layouts, mesh_shape, density, scope, piece=1 << 17, turn=False):
    """Select on this team: the gathered masks, their count and density, and whether they lie as the masks before.

    An error is returned as its text.
    """
    sharded.PIECE = piece
    laid_scores = {name: lay(score, mesh_shape, layouts[name]) for name, score in scores.items()}
    if turn:
        laid_scores = {name: turned(score) for name, score in laid_scores.items()}
    laid = {name: lay(mask, mesh_shape, layouts[name]) for name, mask in before.items()}
    for name, mask in laid.items():
        again = sharded.spread(before[name], mask)
        assert torch.equal(sharded.local(again), sharded.local(mask))
        assert sharded.same_layout(again, mask)
    try:
        chosen = scopes.select(laid_scores, laid, density, scope)
    except ValueError as error:
        return str(error)
    same = all(sharded.same_layout(chosen[name], mask) for name, mask in laid.items())
    return whole(chosen), masks.kept(chosen), masks.density(chosen), same


def refused(scores, before, layouts, mesh_shape, density, scope, spoil=None):
    """The message with which a selection ends on this process; `spoil` edits the laid scores or masks of one."""
    laid_scores = {name: lay(score, mesh_shape, layouts[name]) for name, score in scores.items()}
    laid = {name: lay(mask, mesh_shape, layouts[name]) for name, mask in before.items()}
    if spoil is not None:
        spoil(laid_scores, laid)
    try:
        scopes.select(laid_scores, laid, density, scope)
    except ValueError as error:
        return str(error)


def nan_on_the_last(scores, masks):
    if dist.get_rank() == dist.get_world_size() - 1:
        sharded.local(scores["w"]).view(-1)[-1] = torch.nan


def plain_on_the_last(scores, masks):
    if dist.get_rank() == dist.get_world_size() - 1:
        scores["w"] = torch.zeros(scores["w"].shape)


def bring_back_on_the_last(scores, masks, density):
    """A scope that brings pruned weights back, on one process only."""
    chosen = {name: sharded.wrap(sharded.local(mask).clone(), mask) for name, mask in masks.items()}
    if dist.get_rank() == dist.get_world_size() - 1:
        sharded.local(chosen["w"])[:] = True
    return chosen


def misshape_on_the_last(scores, masks, density):
    if dist.get_rank() == dist.get_world_size() - 1:
        return {name: sharded.local(mask) for name, mask in masks.items()}
    return dict(masks)


def keep_nothing(scores, masks, density):
    return {name: sharded.wrap(torch.zeros_like(sharded.local(mask)), mask) for name, mask in masks.items()}


def both_ways(scores, masks, density):
    """A scope made of two of ours, which look at the same scores."""
    return scopes.globally(scores, scopes.layerwise(scores, masks, 0.8), density)


class Network(nn.Module):
    """Linear layers, sizes of which no number of processes divides; `gate` has more processes than rows."""

    def __init__(self, width=7):
        super().__init__()
        self.hidden = nn.Linear(5, width)
        self.output = nn.Linear(width, 3)
        self.gate = nn.Linear(4, 1)


def make(kind, width):
    """A network over all processes, as its users shard it, and its full weights."""
    torch.manual_seed(0)
    network = Network(width)
    for parameter in network.parameters():
        parameter.data = (parameter.data * 8).round() / 8  # ties
    full = {name: p.detach().clone() for name, p in network.named_parameters()}
    size = dist.get_world_size()
    mesh = mesh_of((size // 2, 2) if "+" in kind else (size,))
    if "tp" in kind:
        plan = {"hidden": ColwiseParallel(), "output": RowwiseParallel()}
        parallelize_module(network, mesh["tp"] if "+" in kind else mesh, plan)
    if "fsdp" in kind:
        fully_shard(network.hidden, mesh=mesh["dp"])
        fully_shard(network, mesh=mesh["dp"])
    if kind == "hsdp+":
        fully_shard(network, mesh=mesh)
    return network, full


def evidence_of(weights, initial, before):
    return criteria.Evidence(
        round=0,
        masks=before,
        density=0.5,
        scope=scopes.globally,
        seed=3,
        read_initial=lambda: initial,
        read_point=dict,
        read_trained=lambda: weights,
        model=print,
        batches=lambda: iter(()),
        make_module=print,
    )


def train_and_select(kind, width, criterion, scope, density):
    """Masks of a real sharded module in two rounds, and those of the gathered weights, after a step."""
    network, full = make(kind, width)
    start = {name: sharded.wrap(sharded.local(p).clone(), p) for name, p in network.named_parameters()}
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    for parameter in network.parameters():
        parameter.grad = parameter.detach().abs() - 0.25
    optimizer.step()
    weights = {name: parameter.detach() for name, parameter in network.named_parameters()}
    for name, parameter in start.items():
        assert torch.equal(whole({name: parameter})[name], full[name]), "gathered as it was"
        again = sharded.spread(full[name], parameter)
        assert torch.equal(sharded.local(again), sharded.local(parameter)), "our part lies where torch says it does"
    here = evidence_of(weights, start, masks.all_kept(weights))
    there = evidence_of(whole(weights), full, masks.all_kept(full))
    for share in (density + 0.2, density):
        ours = scopes.select(dict(criterion(here)), here.masks, share, scope)
        theirs = scopes.select(dict(criterion(there)), there.masks, share, scope)
        masks.check_fit(ours, weights)
        assert masks.kept(ours) == masks.kept(theirs)
        assert masks.total(ours) == masks.total(theirs)
        gathered = whole(ours)
        assert all(torch.equal(gathered[name], theirs[name]) for name in theirs)
        here, there = (
            evidence_of(weights, start, ours),
            evidence_of(whole(weights), full, theirs),
        )
    return {name: str(p.placements) if isinstance(p, DTensor) else "plain" for name, p in weights.items()}


def scores_of(criterion, layouts, mesh_shape, full):
    """A criterion's scores, gathered."""
    laid = {name: lay(weight, mesh_shape, layouts[name]) for name, weight in full.items()}
    other = {name: lay(weight + 1, mesh_shape, layouts[name]) for name, weight in full.items()}
    return whole(criterion(evidence_of(laid, other, masks.all_kept(laid))))


def parts_of_other_sizes(uneven):
    """What selection says where this process may hold another part than placements say."""
    mask = torch.ones(4, 3, dtype=torch.bool)
    part = sharded.wrap(mask[:1] if uneven and dist.get_rank() else mask[:2], lay(mask, (dist.get_world_size(),), "0"))
    try:
        sharded.keep_best({"w": part.float()}, {"w": part}, 3)
    except ValueError as error:
        return str(error)


def check_module(kind, width):
    """What is said of the parts that torch lays."""
    try:
        sharded.check_parts(dict(make(kind, width)[0].named_parameters()))
    except ValueError as error:
        return str(error)


def consumed(scope):
    """Which scores are left after `select`, and after the scope itself."""
    full = {"a": torch.arange(8.0).view(4, 2), "b": torch.arange(6.0).view(3, 2)}
    laid = {name: lay(score, (dist.get_world_size(),), "0") for name, score in full.items()}
    before = {name: lay(torch.ones(s.shape).bool(), (dist.get_world_size(),), "0") for name, s in full.items()}
    scopes_own = dict(laid)
    scope(scopes_own, before, 0.5)
    scopes.select(laid, before, 0.5, scope)
    return list(scopes_own), list(laid)


def outside_of_the_mesh():
    """Select where two of the processes hold nothing: the mesh has the first two only."""
    mesh = DeviceMesh("cpu", [0, 1])
    full = torch.tensor([3.0, 1.0, 3.0, 2.0, 3.0])
    laid = distribute_tensor(full, mesh, [Shard(0)])
    before = distribute_tensor(torch.ones(5).bool(), mesh, [Shard(0)])
    chosen = scopes.select({"w": laid}, {"w": before}, 0.4, scopes.globally)
    return masks.kept(chosen), sharded.local(chosen["w"]).tolist()


def apply_ticket(kind, width, kept, state):
    """Apply a ticket to a sharded module: its full weights and the full masks applied, and whether they lie alike."""
    network, _ = make(kind, width)
    applied = TicketFile(kept, state).apply(network)
    weights = dict(network.named_parameters())
    alike = all(sharded.same_layout(mask, weights[name]) for name, mask in applied.items())
    return {name: each.detach() for name, each in whole(weights).items()}, whole(applied), alike
