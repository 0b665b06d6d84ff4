"""Several seeds of one experiment in one process, their weights stacked: a GPU that one small network cannot fill.

Each seed keeps its ordinary lottery, ticket, Trainer, module and run directory. A further Trainer, the leader, runs the
loops for all: its module holds the weights of all seeds in tensors with one more dimension, which one forward pass
(`torch.func.vmap`), one backward pass and one optimizer step train together. The parameters of each seed's own module
are views of them, and each seed's Trainer shares the leader's loops; so what a seed logs, selects and saves is done by
the same code as in a run of its own, and its files are the same up to the order in which floats are added.

Private names of Lightning are used where there are no others; `tests/test_replicates.py` holds them to that.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.plugins.precision import DoublePrecision, MixedPrecision, Precision
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.trainer import call
from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultCollection
from lightning.pytorch.trainer.states import TrainerState
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from lt_lightning.data import Images
from lt_lightning.disk.rundir import Checkpoint
from lt_lightning.fit import moments
from lt_lightning.fit.enforcement import Enforcement
from lt_lightning.fit.guard import Guard
from lt_lightning.fit.interruption import Interruption
from lt_lightning.fit.pulse import Pulse
from lt_lightning.models import Classifier
from lt_lightning.models.classifier import Batch, is_read
from lt_lightning.sparse import ELEMENTWISE
from lt_lightning.ticket import Ticket

MakeTrainer = Callable[..., L.Trainer]
"""Makes one more Trainer like those of the seeds, from the arguments in which it differs."""

_OF_ALL = ("step", "mu_product", "eta", "mu")
"""What optimizers keep once for a whole parameter: it depends on the number of steps alone."""

_ONE_BY_ONE = "train the seeds one after the other: --multirun seed=0,1,2 instead of replicates=3"


@dataclass(frozen=True)
class Replicate:
    """One seed's run.

    Args:
        cfg: its configuration: that of an ordinary run of this seed.
        directory: its run directory.
    """

    cfg: DictConfig
    directory: str

    @property
    def config(self) -> dict[str, Any]:
        """The configuration as plain values."""
        return cast(dict[str, Any], OmegaConf.to_container(self.cfg, resolve=True))


def configured(cfg: DictConfig, directory: str) -> list[Replicate]:
    """The runs that a configuration asks for: `replicates` of them, with `seed`, `seed + 1`, ...

    Args:
        cfg: of `train.py`.
        directory: the first one's run directory; the others' lie beside it.

    Raises:
        ValueError: if `replicates` is no such number, or the directory does not tell seeds apart.

    Example:
        >>> cfg = OmegaConf.create({"seed": 3, "seed_data": "${seed}", "replicates": 2})
        >>> [(run.directory, run.config["seed_data"]) for run in configured(cfg, "runs/mine/seed=3")]
        [('runs/mine/seed=3', 3), ('runs/mine/seed=4', 4)]
    """
    count, last = cfg.replicates, f"seed={cfg.seed}"
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"replicates={count!r} must be a whole number, 1 or more: 5 trains five seeds together.")
    if count == 1:
        return [Replicate(cfg, directory)]
    path = Path(directory)
    if path.name != last:
        raise ValueError(
            f"replicates={count} want a run directory each, and {directory} does not end in {last}: leave out "
            "hydra.run.dir, or let it end in '/seed=${seed}'."
        )
    runs = []
    for seed in range(cfg.seed, cfg.seed + count):
        each = cfg.copy()
        each.seed, each.replicates = seed, 1
        runs.append(Replicate(each, str(path.with_name(f"seed={seed}"))))
    return runs


def same_data(runs: Sequence[Replicate]) -> list[Any]:
    """The data module of each run: that of the first, in the order of each seed.

    Raises:
        ValueError: for other modules than `Images`, or settings other than `seed` that differ from run to run.
    """
    first = instantiate(runs[0].cfg.data)
    if len(runs) == 1:
        return [first]
    _check_data(first)
    settings = [run.config["data"] for run in runs]
    differing = {key for each in settings for key in each if key != "seed" and each[key] != settings[0].get(key)}
    if differing:
        names = ", ".join(f"data.{key}" for key in sorted(differing))
        raise _refusal(f"{names} that differ from seed to seed", "let the seed decide data.seed alone")
    return [first, *(first.reordered(each["seed"]) for each in settings[1:])]


def side_by_side(lotteries: Sequence[Iterator[Ticket]]) -> Iterator[dict[int, Ticket]]:
    """Iterate over several lotteries at once: the tickets of those whose next fits begin at the same place.

    A lottery that is ahead, as it was begun earlier, waits for the others; one that was interrupted elsewhere than
    they catches up alone. All are asked for their first ticket, and hold their directories, before any is trained.

    Args:
        lotteries: what `lottery` returned, one for a seed.

    Yields:
        Number of the lottery → its ticket; fit them before the next turn, with `fit` or each by its own Trainer.

    Example:
        >>> from types import SimpleNamespace
        >>> plan = SimpleNamespace(arms=[(0, "ticket"), (1, "ticket")])
        >>> def tickets(rounds):
        ...     for n in rounds:
        ...         yield SimpleNamespace(round=n, arm="ticket", shared=False, ckpt_path=None, plan=plan)
        >>> [sorted(group) for group in side_by_side([tickets([0, 1]), tickets([1]), tickets([0, 1])])]
        [[0, 2], [0, 1, 2]]
    """
    with Interruption().ends_the_run(), ExitStack() as stack:  # also while only some of them are still at work
        for each in lotteries:
            stack.callback(cast(Any, each).close)  # before signals are left to others
        waiting = dict(_advanced(lotteries, range(len(lotteries))))
        while waiting:
            places = {number: _place(ticket) if len(waiting) > 1 else () for number, ticket in waiting.items()}
            group = [number for number, place in places.items() if place == min(places.values())]
            yield {number: waiting.pop(number) for number in group}
            waiting = dict(sorted([*waiting.items(), *_advanced(lotteries, group)]))


def _advanced(lotteries: Sequence[Iterator[Ticket]], numbers: Iterable[int]) -> Iterator[tuple[int, Ticket]]:
    """The next tickets of these lotteries, unless they are done."""
    for number in numbers:
        if (ticket := next(lotteries[number], None)) is not None:
            yield number, ticket


def _place(ticket: Ticket) -> tuple[Any, ...]:
    """Where a fit begins: which it is in the run's order, and where its loops stand."""
    fit = (not ticket.shared, list(ticket.plan.arms).index((ticket.round, ticket.arm)))
    if ticket.ckpt_path is None:
        return (*fit, -1, "")
    start = Checkpoint(Path(ticket.ckpt_path), mapped=True)
    return (*fit, start["global_step"], repr(start.get("loops")))


def fit(
    make_trainer: MakeTrainer, trainers: Sequence[L.Trainer], tickets: Sequence[Ticket], data: Sequence[Images]
) -> None:
    """Fit one ticket as ever, or several together: the same fit of several seeds.

    Args:
        make_trainer: makes the leader.
        trainers: of each seed, with its ticket among the callbacks; they can test afterwards.
        tickets: a group of `side_by_side`.
        data: of each seed, of which the first one's is loaded.

    Raises:
        ValueError: for what cannot be trained together, or not to the same results; nothing has been trained then.

    Example:
        ```python
        make_trainer = partial(L.Trainer, max_epochs=20, accelerator="gpu", devices=1)
        for group in side_by_side([lottery(..., directory=f"runs/seed={n}", seed=n) for n in range(5)]):
            tickets = list(group.values())
            trainers = [make_trainer(default_root_dir=each.directory, callbacks=[each]) for each in tickets]
            fit(make_trainer, trainers, tickets, [images.reordered(seed=n) for n in group])
        ```
    """
    if len(tickets) == 1:
        trainers[0].fit(cast(Any, tickets[0].model), data[0], ckpt_path=tickets[0].ckpt_path)
        return
    _check(trainers, tickets, data)
    conductor = _Conductor(trainers, tickets, data)
    leader = make_trainer(
        default_root_dir=tickets[0].directory,
        callbacks=[conductor],
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        gradient_clip_val=None,  # the conductor clips, each seed for itself
    )
    leader.fit(conductor.stacked, _Together(data), ckpt_path=tickets[0].ckpt_path)


def _check(trainers: Sequence[L.Trainer], tickets: Sequence[Ticket], data: Sequence[Any]) -> None:
    """Raise a ValueError for what cannot be trained together; the message says which line to change."""
    for trainer, ticket, images in zip(trainers, tickets, data, strict=True):
        _check_plan(ticket)
        _check_trainer(trainer)
        _check_data(images)
        if type(ticket.model) is not Classifier:
            raise _refusal(
                f"the module {type(ticket.model).__name__}", "choose a model of lt_lightning.models.Classifier"
            )
    optimizers = [_optimizer_of(ticket.model) for ticket in tickets]
    for optimizer in optimizers:
        _check_optimizer(optimizer)
    if any(_options(each) != _options(optimizers[0]) for each in optimizers):
        raise _refusal("optimizers that differ from seed to seed", "set the same model.optimizer for all")
    _check_network(cast(Classifier, tickets[0].model).network, data[0].shape)


def _refusal(what: str, instead: str) -> ValueError:
    return ValueError(f"replicates cannot be trained together with {what}: {instead}; or {_ONE_BY_ONE}.")


def _check_plan(ticket: Ticket) -> None:
    plan = ticket.plan
    if plan.gradual is not None:
        raise _refusal("masks that tighten while they train", "leave out prune=gradual")
    if plan.early_bird is not None:
        raise _refusal("a round 0 whose length its masks decide", "leave out prune=early_bird")
    if plan.sparse != "off":
        raise _refusal(f"prune.sparse={plan.sparse}", "set prune.sparse=off")


def _check_trainer(trainer: Any) -> None:
    if not isinstance(trainer.strategy, SingleDeviceStrategy) or trainer.world_size > 1:
        name = f"{type(trainer.strategy).__name__} on {trainer.world_size} processes"
        raise _refusal(name, "choose one device: trainer=cpu or trainer=gpu")
    plugin = trainer.precision_plugin
    scaled = isinstance(plugin, MixedPrecision) and plugin.scaler is not None
    if type(plugin) not in (Precision, DoublePrecision, MixedPrecision) or scaled:
        known = "32-true, bf16-mixed or 64-true"
        raise _refusal(f"precision={trainer.precision}", f"set trainer.precision to {known}")
    for callback in trainer.callbacks:
        if not isinstance(callback, (Ticket, Guard, Pulse, ProgressBar)):
            name = type(callback).__name__
            raise _refusal(f"the callback {name}, which would see one seed alone", "leave it out (callbacks, trainer)")


def _check_data(data: Any) -> None:
    if not isinstance(data, Images):
        raise _refusal(f"the data module {type(data).__name__}", "choose one of lt_lightning.data.Images (data=)")


def _check_optimizer(optimizer: Optimizer) -> None:
    if type(optimizer) not in ELEMENTWISE:
        known = ", ".join(each.__name__ for each in ELEMENTWISE)
        name = type(optimizer).__name__
        raise _refusal(f"{name}, in which one weight may look at another", f"set model.optimizer to one of {known}")


def _check_network(network: nn.Module, shape: Sequence[int]) -> None:
    """Run copies of the network side by side, once."""
    for name, layer in network.named_modules():
        if isinstance(layer, nn.modules.dropout._DropoutNd) and layer.p > 0:
            raise _refusal(f"dropout ({name}, p={layer.p}), whose draws would be others", "set its p to 0")
    dtype = next(network.parameters()).dtype
    try:
        with torch.no_grad():
            run(stack([network, network]).train(), torch.zeros(2, 2, *shape, dtype=dtype))
    except RuntimeError as error:
        what = f"{type(network).__name__}, which torch.func.vmap cannot run ({str(error).splitlines()[0]})"
        raise _refusal(what, "choose another model") from error


def _optimizer_of(model: Any) -> Optimizer:
    made = model.configure_optimizers()
    return made["optimizer"] if isinstance(made, Mapping) else made


def _options(optimizer: Optimizer) -> list[dict[str, Any]]:
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


def stack(networks: Sequence[nn.Module]) -> nn.Module:
    """One network in whose place all of them run: each parameter and buffer is theirs, stacked along a new dimension.

    Args:
        networks: of one architecture; they lend their values, and stay as they are.

    Example:
        >>> stacked = stack([nn.Linear(3, 2), nn.Linear(3, 2)])
        >>> {name: tuple(each.shape) for name, each in stacked.named_parameters()}
        {'weight': (2, 2, 3), 'bias': (2, 2)}
        >>> run(stacked, torch.ones(2, 5, 3)).shape
        torch.Size([2, 5, 2])
    """
    made = copy.deepcopy(networks[0])
    seen: dict[Tensor, Tensor] = {}  # tensors are keys by identity
    for one, *theirs in zip(made.modules(), *(each.modules() for each in networks), strict=True):
        for kind in ("_parameters", "_buffers"):
            for name, value in getattr(one, kind).items():
                if value is not None and value not in seen:
                    values = torch.stack([getattr(each, kind)[name].detach() for each in theirs])
                    is_parameter = isinstance(value, nn.Parameter)
                    seen[value] = nn.Parameter(values, value.requires_grad) if is_parameter else values
                if value is not None:
                    getattr(one, kind)[name] = seen[value]  # tied ones stay tied
        if type(one) is nn.Linear and "forward" not in vars(one):
            one.forward = partial(_linear, one)  # type: ignore[method-assign]
    return made


def run(network: nn.Module, inputs: Tensor, *, shared: bool = False) -> Tensor:
    """The outputs of stacked networks, [networks, batch, ...], each on its own inputs.

    Args:
        network: from `stack`; in training mode batch norms update their stacked statistics.
        inputs: [networks, batch, ...]; or [batch, ...] if they are `shared` by all.
        shared: see there.

    Example:
        >>> networks = [nn.Linear(3, 2), nn.Linear(3, 2)]
        >>> inputs = torch.ones(5, 3)
        >>> outputs = run(stack(networks), inputs, shared=True)
        >>> torch.allclose(outputs[1], networks[1](inputs))
        True
    """
    # By module, each once: with `tie_weights` torch would leave a layer that occurs twice with tensors of this call.
    tensors = {
        f"{prefix}.{name}".removeprefix("."): value
        for prefix, module in network.named_modules()
        for name, value in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    }

    def one(tensors: dict[str, Tensor], inputs: Tensor) -> Tensor:
        return torch.func.functional_call(network, tensors, (inputs,), tie_weights=False)

    return torch.func.vmap(one, in_dims=(0, None if shared else 0))(tensors, inputs)


def _linear(layer: nn.Linear, inputs: Tensor) -> Tensor:
    """A linear layer whose weight gradient comes out of a batched product in the order that it is stored in.

    Of `F.linear` it comes transposed, and copying it took longer than the product.
    """
    outputs = (layer.weight @ inputs.flatten(0, -2).mT).mT if inputs.dim() > 1 else layer.weight @ inputs
    outputs = outputs if layer.bias is None else outputs + layer.bias.to(outputs.dtype)
    return outputs.unflatten(0, inputs.shape[:-1]) if inputs.dim() > 2 else outputs


def clip(gradients: Sequence[Tensor], value: float, algorithm: str) -> None:
    """Clip stacked gradients in place, each network's by its own norm, as Lightning does with those of one.

    Args:
        gradients: [networks, ...] each.
        value: the largest norm of all gradients of a network, or the largest absolute value.
        algorithm: "norm" or "value".

    Example:
        >>> gradients = [torch.tensor([[3.0, 4.0], [0.3, 0.4]])]
        >>> clip(gradients, 1.0, "norm")
        >>> gradients[0].round(decimals=3)
        tensor([[0.6000, 0.8000],
                [0.3000, 0.4000]])
    """
    if algorithm == "value":
        for each in gradients:
            each.clamp_(-value, value)
        return
    norms = torch.stack([each.reshape(len(each), -1).norm(dim=1) for each in gradients]).norm(dim=0)
    scale = (value / (norms + 1e-6)).clamp(max=1.0)
    for each in gradients:
        each.mul_(scale.view(-1, *[1] * (each.dim() - 1)))


class _Stacked(L.LightningModule):
    """The module that the leader trains: the classifiers of all seeds, with their weights stacked."""

    def __init__(self, members: Sequence[Classifier], turn_to: Callable[[int], Any]) -> None:
        super().__init__()
        self._members, self._turn_to = list(members), turn_to  # in a list: they are no submodules
        self._predicted: list[tuple[Tensor, Tensor]] = []

    def setup(self, stage: str) -> None:
        """Stack the weights, now that the tickets have let their modules become double or stay single."""
        self.network = stack([each.network for each in self._members])

    def make_views(self) -> None:
        """Let the members' parameters and buffers be views of the stacked ones, on their device."""
        for number, member in enumerate(self._members):
            member.to(self.device)
            for mine, stacked in self._pairs(member):
                mine.data = stacked.detach()[number]

    def take_copies(self) -> None:
        """Let the members' tensors be their own again."""
        for member in self._members:
            for mine, _ in self._pairs(member):
                mine.data = mine.detach().clone()

    def _pairs(self, member: Classifier) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(member.network.parameters(), self.network.parameters(), strict=True)
        yield from zip(member.network.buffers(), self.network.buffers(), strict=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer of the first member, with stacked parameters in the place of its own, and its schedule."""
        first = self._members[0]
        made = first.configure_optimizers()
        optimizer: Any = made["optimizer"] if isinstance(made, Mapping) else made
        mine = {id(own): stacked for own, stacked in self._pairs(first)}
        state = {mine[id(each)]: _repeated(values, len(self._members)) for each, values in optimizer.state.items()}
        for group in optimizer.param_groups:
            group["params"] = [mine[id(each)] for each in group["params"]]
        optimizer.state.clear()
        optimizer.state.update(state)
        return made

    def training_step(self, batches: Sequence[Batch], batch_idx: int) -> Tensor:
        """The sum of the members' losses: the gradient of each is that of its own."""
        inputs, labels = (torch.stack(parts) for parts in zip(*batches, strict=True))
        logits = run(self.network, inputs)
        losses = cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape).mean(1)
        self._predicted.append((logits.detach().argmax(-1), labels))
        self._log(losses.detach())
        return losses.sum()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Let each member log what it makes of its logits."""
        logits = run(self.network, batch[0], shared=True)
        for number, member in enumerate(self._members):
            self._turn_to(number)
            member._current_fx_name = "validation_step"
            member.forward = partial(_given, logits[number])  # type: ignore[method-assign]
            member.validation_step(batch, batch_idx)
            del member.forward

    def _log(self, losses: Tensor) -> None:
        if not is_read(self.trainer) and self._members[0].is_accuracy_logged:
            return
        for number, member in enumerate(self._members):
            self._turn_to(number)
            member._current_fx_name = "training_step"
            member.log_step(losses[number])

    def update_accuracies(self) -> None:
        """Let the members' metrics have seen all batches; one by one they would take most of a step on a GPU."""
        if not self._predicted:
            return
        predicted, labels = (torch.cat(parts, 1) for parts in zip(*self._predicted, strict=True))
        self._predicted.clear()
        for number, member in enumerate(self._members):
            member.train_accuracy.update(predicted[number], labels[number])


def _given(outputs: Tensor, inputs: Tensor) -> Tensor:
    """What was computed before."""
    return outputs


def _repeated(state: Mapping[str, Any], count: int) -> dict[str, Any]:
    """The state of a parameter for as many stacked ones; some optimizers have one before their first step."""
    return {key: value if key in _OF_ALL else torch.stack([value] * count) for key, value in state.items()}


class _Together(L.LightningDataModule):
    """The images of all seeds, which are the same, in the order of each."""

    def __init__(self, data: Sequence[Images]) -> None:
        super().__init__()
        self._data = data

    def prepare_data(self) -> None:
        """Read the images once."""
        self._data[0].prepare_data()

    def setup(self, stage: str) -> None:
        """Put them on the device once."""
        for each in self._data:
            each.trainer = self.trainer
        self._data[0].setup(stage)

    def train_dataloader(self) -> CombinedLoader:
        """Batches of all seeds: a list of one for each."""
        return CombinedLoader([each.train_dataloader() for each in self._data], "min_size")

    def val_dataloader(self) -> Any:
        """The validation images, which all seeds share."""
        return self._data[0].val_dataloader()


class _Heard(Interruption):
    """What a ticket knows of signals while others train with it: the leader listens, and obeys when all are saved."""

    def __init__(self, conductor: "_Conductor") -> None:
        self._conductor = conductor
        self.is_obeyed = False

    @property
    def signal(self) -> int | None:  # type: ignore[override]
        """The signal that all knew of when this batch or epoch ended."""
        return self._conductor.signal

    def note(self, alone: bool = True) -> None:
        """Leave it to the leader."""

    def stop_noting(self) -> None:
        """Leave it to the leader."""

    def obey(self) -> None:
        """Tell the leader that this ticket is saved."""
        self.is_obeyed = self.signal is not None


class _Conductor(Callback):
    """The leader's only callback: it lets each ticket, with its Trainer and its module, see the fit as its own."""

    def __init__(self, trainers: Sequence[L.Trainer], tickets: Sequence[Ticket], data: Sequence[Images]) -> None:
        self._trainers: Sequence[Any] = trainers
        self._tickets, self._data = tickets, data
        self._heard = [_Heard(self) for _ in tickets]
        self._members = [cast(Classifier, each.model) for each in tickets]
        self.stacked = _Stacked(self._members, self._turn_to)
        self.signal: int | None = None
        self._interruption = Interruption()
        self._results = [(_ResultCollection(training=True), _ResultCollection(training=False)) for _ in tickets]
        self._loaded: list[dict[str, Any]] = []
        self._leader: Any = None
        self._said = False

    # One seed at a time

    def _turn_to(self, number: int) -> Any:
        """Let Lightning gather metrics for one seed from now on; returns its Trainer."""
        loop = self._leader.fit_loop.epoch_loop
        loop._results, loop.val_loop._results = self._results[number]
        return self._trainers[number]

    def _forward(self, hook: str, *arguments: Any) -> None:
        """Call a hook of all seeds' callbacks."""
        for number in range(len(self._tickets)):
            trainer = self._turn_to(number)
            call._call_callback_hooks(trainer, hook, *arguments)
        self._agree()

    def _agree(self) -> None:
        """All end when one does: they do so at the same step, such as at the rewind point without a dense round."""
        if any(trainer.should_stop for trainer in self._trainers):
            for each in (self._leader, *self._trainers):
                each.should_stop = True

    # Before the fit

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Let the seeds' Trainers share the leader's loops, and set them up."""
        self._leader = trainer
        trainer.strategy.load_checkpoint = self._load  # type: ignore[assignment,method-assign]
        for number, (each, ticket) in enumerate(zip(self._trainers, self._tickets, strict=True)):
            each._data_connector.attach_data(self._members[number], datamodule=self._data[number])
            each.fit_loop, each.state, each.should_stop = trainer.fit_loop, trainer.state, False
            each.save_checkpoint = partial(self._save, number)
            each.strategy.broadcast = partial(self._decide, number)
            each.strategy.connect(self._members[number])
            each._checkpoint_connector._ckpt_path = ticket.ckpt_path
            each._callback_connector._attach_model_callbacks()
            self._turn_to(number)
            call._call_setup_hook(each)
            ticket.follow(self._heard[number], len(self._tickets))
        trainer._logger_connector = cast(Any, _Connectors(self._trainers, self._turn_to))

    def _load(self, path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """The checkpoints of all seeds, as one of the stacked module; `path` is that of the first."""
        pairs = zip(self._trainers, self._tickets, strict=True)
        self._loaded = [dict(trainer.strategy.load_checkpoint(ticket.ckpt_path)) for trainer, ticket in pairs]
        return _joined(self._loaded)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Let each seed's callbacks see its own checkpoint."""
        for number, loaded in enumerate(self._loaded):
            each = self._turn_to(number)
            call._call_callbacks_on_load_checkpoint(each, loaded)
            call._call_callbacks_load_state_dict(each, loaded)
        if "loops" not in self._loaded[0]:
            checkpoint.pop("loops", None)
        self._loaded = []

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let the seeds' modules be views of what is trained."""
        self.stacked.make_views()
        for each in self._trainers:
            each.strategy.optimizers = trainer.strategy.optimizers
            each.strategy.lr_scheduler_configs = trainer.strategy.lr_scheduler_configs
        self._forward("on_fit_start")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Hold the stacked weights to the masks of all, and call each seed when a batch or an epoch is over."""
        masks = {name: torch.stack([each.masks[name] for each in self._tickets]) for name in self._tickets[0].masks}
        parameters = dict(self.stacked.named_parameters())
        self._enforcement = Enforcement(masks, {name: parameters[name] for name in masks})
        self._enforcement.begin(self._trainers[0])
        for member in self._members:
            member.on_train_start()
        loops: list[Any] = [trainer.fit_loop.epoch_loop, trainer.fit_loop]
        calls: list[list[Callable[[], None]]] = [[], []]
        for number in range(len(self._tickets)):
            for loop in loops:
                loop.on_advance_end = _nothing
            call._call_callback_hooks(self._turn_to(number), "on_train_start")
            for gathered, loop in zip(calls, loops, strict=True):
                gathered.append(vars(loop).pop("on_advance_end"))
        self._agree()
        trainer.strategy.lr_scheduler_configs = self._trainers[0].strategy.lr_scheduler_configs
        moments.after_each_batch(trainer, partial(self._after, calls[0]))
        moments.after_each_epoch(trainer, partial(self._after, calls[1]))
        self._interruption.note()

    def _after(self, calls: Sequence[Callable[[], None]]) -> None:
        """After a batch or an epoch: each seed saves what is due; once all have, a signal is obeyed."""
        for number, moment in enumerate(calls):
            self._turn_to(number)
            moment()
        self._agree()
        self._obey()

    def _obey(self) -> None:
        if all(each.is_obeyed for each in self._heard):
            self._interruption.obey()

    # During the fit

    def on_sanity_check_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forward."""
        self._forward("on_sanity_check_start")

    def on_sanity_check_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forward."""
        self._forward("on_sanity_check_end")

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forward."""
        for member in self._members:
            member.on_train_epoch_start()
        self._forward("on_train_epoch_start")

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        """Mask gradients where that is needed, and clip those of each seed."""
        self._enforcement.mask_gradients(optimizer)
        first = self._trainers[0]
        if first.gradient_clip_val:
            gradients = [each.grad for each in self.stacked.parameters() if each.grad is not None]
            clip(gradients, first.gradient_clip_val, first.gradient_clip_algorithm or "norm")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Forward; a signal that comes later waits for the next batch, so that all seeds save at the same."""
        self.signal = self._interruption.signal
        self._forward("on_train_batch_end", outputs, batch, batch_idx)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forward."""
        self._forward("on_validation_start")

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Forward."""
        self._forward("on_validation_batch_end", outputs, batch, batch_idx, 0)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forward."""
        self._forward("on_validation_end")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forward, once the accuracies are complete."""
        self.signal = self._interruption.signal
        self.stacked.update_accuracies()
        self._forward("on_train_epoch_end")

    def _save(self, number: int, path: Any, weights_only: bool | None = None, storage_options: Any = None) -> None:
        """Save the checkpoint of one seed, in the place of `Trainer.save_checkpoint`."""
        trainer = self._turn_to(number)
        self.stacked.update_accuracies()
        self._enforcement.clear(self._leader)
        checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only)
        trainer.strategy.save_checkpoint(_own(checkpoint, number), path, storage_options)

    def _decide(self, number: int, value: Any, src: int = 0) -> Any:
        """In the place of `strategy.broadcast`: what the first seed decides, that saving is cheap, all do."""
        if not isinstance(value, bool):
            return value
        self._said = value if number == 0 else self._said
        return self._said

    # After the fit

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forward."""
        self._forward("on_train_end")

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let each seed save its end and draw its next ticket, for which it may look at its batches."""
        self.signal = self._interruption.signal
        self.stacked.make_views()  # Lightning has put the stacked weights back onto the CPU
        loop: Any = trainer.fit_loop
        together, loaders = loop._combined_loader, loop._combined_loader.flattened
        for number, loader in enumerate(loaders):
            loop._combined_loader = CombinedLoader(loader, "max_size_cycle")
            call._call_callback_hooks(self._turn_to(number), "on_fit_end")
        loop._combined_loader = together
        self._obey()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Forward, and let the loggers know."""
        self._leader = trainer  # it may come before `setup`
        self._forward("on_exception", exception)
        for logger in (logger for each in self._trainers for logger in each.loggers):
            logger.finalize("failed")
        self._release(trainer)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give each seed's Trainer and module what is theirs, for the tests."""
        self.stacked.take_copies()
        for number in range(len(self._tickets)):
            call._call_teardown_hook(self._turn_to(number))
        self._release(trainer)
        for each in self._trainers:
            each.state = TrainerState()
            del each.save_checkpoint, each.strategy.broadcast

    def _release(self, trainer: L.Trainer) -> None:
        self._interruption.stop_noting()
        moments.release(trainer)
        if hasattr(self, "_enforcement"):
            self._enforcement.release()


def _nothing(*arguments: Any) -> None:
    """What comes before a seed's own part in a moment of the loop."""


class _Connectors:
    """The leader's `_logger_connector`: what its loops tell it, each seed's own is told, with its own metrics."""

    def __init__(self, trainers: Sequence[Any], turn_to: Callable[[int], Any]) -> None:
        vars(self).update(trainers=trainers, turn_to=turn_to, evaluated=[{} for _ in trainers])

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.turn_to(0)._logger_connector, name)
        return partial(self._all, name) if callable(found) else found

    def __setattr__(self, name: str, value: Any) -> None:
        for each in self.trainers:
            setattr(each._logger_connector, name, value)

    def _all(self, name: str, *arguments: Any, **options: Any) -> list[Any]:
        numbers = range(len(self.trainers))
        return [getattr(self.turn_to(n)._logger_connector, name)(*arguments, **options) for n in numbers]

    def update_eval_epoch_metrics(self) -> dict[str, Any]:
        """Keep what each has measured; the leader itself has measured nothing."""
        for evaluated, metrics in zip(self.evaluated, self._all("update_eval_epoch_metrics"), strict=True):
            evaluated |= metrics
        return {}

    def log_eval_end_metrics(self, metrics: Any) -> None:
        """Log what each has measured."""
        for number, evaluated in enumerate(self.evaluated):
            self.turn_to(number)._logger_connector.log_eval_end_metrics(dict(evaluated))
            evaluated.clear()


def _joined(checkpoints: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Checkpoints of seeds that stand at one place, as one of stacked weights; `_own` takes them apart again."""
    first = dict(checkpoints[0])
    first["callbacks"] = {}
    states = [each["state_dict"] for each in checkpoints]
    first["state_dict"] = {name: torch.stack([each[name] for each in states]) for name in states[0]}
    if "optimizer_states" in first:
        pairs = zip(*(each["optimizer_states"] for each in checkpoints), strict=True)
        first["optimizer_states"] = [_joined_states(each) for each in pairs]
    if "loops" in first:
        loops = [each["loops"]["fit_loop"] for each in checkpoints]
        first["loops"] = {"fit_loop": _with_loaders(loops[0], [state for each in loops for state in _loaders(each)])}
    return first


def _own(checkpoint: dict[str, Any], number: int) -> dict[str, Any]:
    """The checkpoint of one seed, out of one of its own weights and of the stacked optimizer and loaders."""
    for name, value in checkpoint["state_dict"].items():
        checkpoint["state_dict"][name] = value.clone()  # of a view torch.save would write all that it is a view of
    if "optimizer_states" in checkpoint:
        checkpoint["optimizer_states"] = [_own_state(each, number) for each in checkpoint["optimizer_states"]]
    if "loops" in checkpoint:
        loop = checkpoint["loops"]["fit_loop"]
        loaders = _loaders(loop)
        if len(loaders) > 1:  # at the end of the fit each seed has its own loader alone
            checkpoint["loops"]["fit_loop"] = _with_loaders(loop, [loaders[number]])
    return checkpoint


def _loaders(loop: Mapping[str, Any]) -> Sequence[Any]:
    """Where the loaders stand, in the state of Lightning's loop of a fit."""
    return loop["state_dict"].get("combined_loader", ())


def _with_loaders(loop: Mapping[str, Any], loaders: list[Any]) -> dict[str, Any]:
    return {**loop, "state_dict": {**loop["state_dict"], **({"combined_loader": loaders} if loaders else {})}}


def _joined_states(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    def values(parameter: Any, key: str) -> Any:
        each = [state["state"][parameter][key] for state in states]
        return torch.stack(each) if isinstance(each[0], Tensor) and key not in _OF_ALL else each[0]

    joint = {n: {key: values(n, key) for key in state} for n, state in states[0]["state"].items()}
    return {**states[0], "state": joint}


def _own_state(state: Mapping[str, Any], number: int) -> dict[str, Any]:
    def value(key: str, value: Any) -> Any:
        return value[number].clone() if isinstance(value, Tensor) and key not in _OF_ALL else copy.copy(value)

    mine = {n: {key: value(key, each) for key, each in values.items()} for n, values in state["state"].items()}
    return {**state, "state": mine}
