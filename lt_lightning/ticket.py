"""The ticket: a Lightning callback that trains a model under masks for one fit, and draws the next masks from it."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint
from lightning.pytorch.plugins.precision import DoublePrecision
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import nn
from torch.optim import Optimizer

from lt_lightning import sharded, sparse, strategies
from lt_lightning.controls import Ingredients
from lt_lightning.disk import loading
from lt_lightning.disk.rundir import TICKET, ArmDirectory
from lt_lightning.exchange.ticketfile import TicketFile, tensors_of
from lt_lightning.fit import chunks, epoch_metrics, guard, hooks, moments, position, pulse, tuning
from lt_lightning.fit.enforcement import Enforcement, gradients_matter
from lt_lightning.fit.interruption import Interruption
from lt_lightning.fit.measurements import Measurements
from lt_lightning.fit.saving import Saving
from lt_lightning.masks import Masks, all_kept, check_fit, density
from lt_lightning.plan import Plan
from lt_lightning.processes import broadcast, end_at_exit, gather, is_writer, wait
from lt_lightning.prunable import check_norms, find_prunable, ties
from lt_lightning.pruning import draw_next, write_dense, write_tightened
from lt_lightning.records import Record, read_curves
from lt_lightning.rehearsal import rehearse
from lt_lightning.seeding import random_state, set_random_state
from lt_lightning.tightening import Settling, Tightening
from lt_lightning.twins import twins


class Ticket(Callback):
    """One fit of one ticket: pass it to a new Trainer, with `ckpt_path=ticket.ckpt_path` to its fit.

    Made by `lottery`. During the fit pruned weights are exactly zero: weights are masked after every optimizer
    step, gradients before anything clips them. At the end it selects the next round's masks and writes them down.

    Attributes:
        model: the LightningModule to fit, compiled if it was given so.
        round: how many times the ticket was pruned; 0 is dense.
        arm: "ticket", or the control's name.
        ckpt_path: the checkpoint to fit from; None: the model as it is.
        fitted: whether its fit has ended.
        shared: whether this is a dense round that several runs share (`dense_directory`); that of this run comes next.
    """

    def __init__(self, plan: Plan, arm: str, ingredients: Ingredients, model: nn.Module, resume: Path | None) -> None:
        self.model = model
        self._module = unwrap_compiled(model)
        self.round = ingredients.round
        self.arm = arm
        self.plan = self.rehearsed = plan
        self.ckpt_path = str(resume) if resume else ingredients.start
        self.fitted = self.shared = self._follows = False
        self._resuming = resume is not None
        self._start = ingredients.start
        self._masks: Any = ingredients.masks
        self._density: float | None = None
        self._enforcement = Enforcement({}, {})
        tightens = plan.gradual is not None and self.round > 0 and arm == TICKET
        self._tightening = Tightening(plan, self.round) if tightens else None
        watches = plan.early_bird is not None and self.round == 0 and arm == TICKET
        self._settling = Settling(plan) if watches else None
        self._measured = Measurements(plan.monitor, plan.mode)
        self._tuning = tuning.Tuning()
        self._trained = False
        self._random_states: list[Any] = []
        self._random_state: Any = None
        self._epoch_metrics: list[epoch_metrics.State] = []
        self._logged_before: dict[str, Any] = {}
        self._hold_learning_rate = False
        self._should_stop = False
        self._saving = self._make_saving()
        self._execution = sparse.Execution(plan.sparse, self.files.sparse)
        guard.put_on(self._module, self)
        hooks.leave_out_empty(self)

    def __repr__(self) -> str:
        return f"Ticket({self.name}, density={self.density:.4g})"

    def __deepcopy__(self, memo: dict[int, Any]) -> "Ticket":
        return self  # weight averaging copies the model, which refers to us

    @property
    def files(self) -> ArmDirectory:
        """The files of this fit."""
        return self.plan.directory.arm(self.round, self.arm)

    @property
    def directory(self) -> str:
        """Where this fit's files lie: the Trainer's `default_root_dir`."""
        return str(self.files.path)

    @property
    def name(self) -> str:
        """Directory name within the run: "round-03" or "round-03/reinit"."""
        return self.files.path.relative_to(self.plan.directory.path).as_posix()

    @property
    def masks(self) -> Masks:
        """Parameter name → bool tensor on the CPU; True is kept. In a sharded fit a `DTensor`, as the parameter is.

        Those of a pruned round lie on disk, and each is read when it is asked for; `dict(ticket.masks)` reads all.
        """
        if not self._masks:
            self._masks = all_kept(find_prunable(self._module, self.plan.prunable))
        return self._masks

    @property
    def density(self) -> float:
        """Kept weights over prunable weights, in (0, 1]."""
        if self._density is None:
            self._density = density(self._masks) if self._masks else 1.0
        return self._density

    @property
    def early_stop_path(self) -> str | None:
        """The weights at the best monitor; None without a monitor or before the first validation."""
        return str(self.files.early_stop) if self.files.early_stop.exists() else None

    @property
    def curves_from_elsewhere(self) -> list[Mapping[str, Any]]:
        """The rows of `metrics.csv` that no logger of this run has seen, as its round 0 was trained in another run."""
        return read_curves(self.files.curves) if self.files.origin.exists() else []

    @property
    def record(self) -> Record:
        """The row of this fit, as far as it is known."""
        name = {"round": self.round, "arm": self.arm, "seed": self.plan.seed, "density": self.density}
        return name | self._measured.record()

    # Before the fit

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse what cannot be right, and go last, so that nothing changes a gradient or a state after us."""
        end_at_exit()
        loading.adapt(trainer)
        pulse.add_to(trainer, self)
        if stage != "fit":
            return
        self._require_agreement()
        if self.fitted or trainer.fit_loop.epoch_progress.total.ready > 0:
            raise RuntimeError(
                f"this Trainer has been used for a round already, and used twice it would train 0 steps ({self.name}). "
                "Make a new one inside the loop: trainer = L.Trainer(..., callbacks=[ticket])."
            )
        if pl_module is not self._module:
            raise RuntimeError(
                f"the Trainer fits another module than that of {self.name}: write trainer.fit(ticket.model, ...)."
            )
        if not is_overridden("configure_model", pl_module, L.LightningModule):  # else its parameters may not exist yet
            self._check_masks(pl_module)
        self._require_own_directory(trainer)
        for each in (self._tightening, self._settling):
            if each:
                each.check(trainer)
        if self.plan.sparse != "off":
            sparse.check(trainer, self.model, pl_module)
        if self.plan.steps_per_batch > 1:
            chunks.check(trainer)
        if isinstance(trainer.precision_plugin, twins(DoublePrecision)):
            pl_module.double()  # Lightning does so only after a checkpoint is loaded, and would round its weights
        trial = trainer.fast_dev_run  # type: ignore[attr-defined]
        if trial and not self.plan.directory.is_scratch:
            scratch = self.plan.directory.scratch(create=trainer.is_global_zero)
            wait()  # all look into it
            self.plan = replace(self.plan, directory=scratch)
            self._saving = self._make_saving()
            self._execution = sparse.Execution(self.plan.sparse, self.files.sparse)
        searches = self._tuning.prepare(trainer, pl_module, self.plan.directory.point(0), self.state_key)
        others = [c for c in trainer.callbacks if c is not self]  # type: ignore[attr-defined]
        first = [_BeforeSearch(self)] if searches else []
        trainer.callbacks = [*first, *others, self, _epoch_end(self)]  # type: ignore[attr-defined]

    def follow(self, interruption: Interruption, together: int) -> None:
        """Be one of so many tickets that are trained together; call after `setup`.

        Whoever trains them masks the weights after each step, and obeys signals once all are saved.
        """
        self._follows = True
        self._saving.follow(interruption, together)

    def _require_agreement(self) -> None:
        """Raise a RuntimeError, on all processes, if they are about to fit different tickets."""
        place = f"{self.files.path.resolve()} of {self.plan.rounds} rounds, configuration {self.plan.fingerprint}"
        said = gather(f"{self.name} from {self.ckpt_path or 'a fresh model'} in {place}")
        if len(set(said)) > 1:
            fits = "; ".join(f"process {rank}: {fit}" for rank, fit in enumerate(said))
            raise RuntimeError(
                f"the processes do not agree on what comes next ({fits}): they must run the same program, with the "
                "same arguments, on one file system."
            )

    def _require_own_directory(self, trainer: L.Trainer) -> None:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            given = callback.dirpath if isinstance(callback, twins(ModelCheckpoint)) else None
            if given and Path(given).resolve() == self.files.path.resolve():
                raise ValueError(
                    f"ModelCheckpoint(dirpath={str(given)!r}) writes where the ticket keeps its own last.ckpt, "
                    "early_stop.ckpt and final.ckpt, and could replace them: leave dirpath out, or write "
                    'dirpath=ticket.directory + "/checkpoints".'
                )

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take note of what the checkpoint asks for: no schedules mean that the learning rate is held."""
        self._hold_learning_rate = checkpoint.get("lr_schedulers") == []
        self._epoch_metrics = checkpoint.get("epoch_metrics", [])
        self._should_stop = checkpoint.get("should_stop", False)
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            checkpoint.pop("loops", None)  # a trial of one batch would be over before a later step

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check the masks against the model and mask it, so that even the sanity check sees the ticket."""
        self._tuning.conclude(trainer, pl_module)
        self._measured.start_clock()
        self._mask_module(pl_module)

    def _mask_module(self, pl_module: L.LightningModule) -> None:
        sharded.reshard(pl_module)
        self._shard_masks(pl_module)
        parameters = self._check_masks(pl_module)
        self._enforcement.release()
        self._enforcement = Enforcement(self.masks, parameters)
        self._enforcement.mask_weights()

    def _shard_masks(self, pl_module: L.LightningModule) -> None:
        """Keep of each mask what this process holds of its parameter; one whole mask at a time is in memory."""
        parameters = find_prunable(pl_module, self.plan.prunable)
        if not sharded.any_sharded(parameters):
            return
        sharded.check_parts(parameters)
        if self._masks and not sharded.any_sharded(self._masks):
            check_fit(self._masks, parameters)
            self._masks = {name: sharded.spread(self._masks[name], each) for name, each in parameters.items()}
        elif not self._masks:
            self._masks = all_kept(parameters)
        self._density = density(self._masks)  # here, where all processes are: counting needs them

    def _check_masks(self, pl_module: L.LightningModule) -> dict[str, nn.Parameter]:
        parameters = find_prunable(pl_module, self.plan.prunable)
        check_fit(self.masks, parameters)
        check_norms(self.masks, pl_module)
        self.plan.check_patterns(self.masks)
        return parameters

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Everything is restored: mask it, put the data where it stood, and save the point at step 0."""
        self._check_start(trainer)
        self._trained = True
        hooks.leave_out(self, hooks.START, when=not strategies.is_sharded(trainer.strategy))
        hooks.leave_out(self, "on_before_optimizer_step", when=not gradients_matter(trainer))
        position.finish_epoch(trainer)
        if self._hold_learning_rate:
            trainer.strategy.lr_scheduler_configs = []
        self._enforcement.begin(trainer)
        if self._follows:
            self._enforcement.release()
        self._return_to_position(trainer)
        self._write_late_weights(pl_module)
        if self._settling:
            self._settling.begin(trainer, self.masks)
        if self._tightening:
            self._tightening.begin(trainer, self.masks)
            self._measured.beside = {"density": self.density}
        path = self.files.curves if trainer.is_global_zero else None
        self._measured.start_curves(path)
        moments.after_each_batch(trainer, partial(self._add_logged, trainer))
        self._begin_sparse(trainer, pl_module)
        self._saving.begin(trainer)
        if self._makes_points and trainer.global_step == 0:
            rehearse(self.rehearsed, self.plan.directory, trainer)
        if self.plan.steps_per_batch > 1:
            due_in = partial(self._due_in, trainer)
            chunks.Chunks(trainer, self.plan.steps_per_batch, (Ticket, pulse.Pulse), due_in).begin()

    def _due_in(self, trainer: L.Trainer, most: int) -> int:
        """In how many steps there is something to do, if at most so many are taken within the epoch; 0: now."""
        step, every = trainer.global_step, trainer.log_every_n_steps  # type: ignore[attr-defined]
        saving = self._saving.due_in(step)
        most = most if saving is None else min(most, saving)
        if self._logged_before or self._execution.is_watching:
            most = min(most, 1)
        if every:
            most = min(most, every - step % every)
        return self._tightening.due_in(trainer, most) if self._tightening else most

    def _begin_sparse(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.plan.sparse == "off":
            return
        moments.after_each_batch(trainer, lambda: self._execution.after_batch(trainer, position.is_over(trainer)))
        moments.before_the_end(trainer, self._execution.end)
        self._execution.begin(trainer, pl_module, self.masks, self._resuming, self._enforcement.leave)

    def _write_late_weights(self, pl_module: L.LightningModule) -> None:
        """A control's ticket has the weights that it starts from, also those that the Trainer has only now let draw."""
        late = is_overridden("configure_model", pl_module, L.LightningModule)
        fresh = self.arm != TICKET and self._start is None and not self._resuming
        if late and fresh and (is_writer() or sharded.any_sharded(self.masks)):
            state = tensors_of(pl_module.state_dict())
            tied = ties(pl_module, self.masks)
            ticket = TicketFile(self.masks, state, self.round, self.arm, "fresh", self.plan.fingerprint, tied=tied)
            ticket.write(self.files.ticket)

    def _return_to_position(self, trainer: L.Trainer) -> None:
        metrics = dict(enumerate(self._epoch_metrics)).get(trainer.global_rank)
        if self._resuming and trainer.global_step > 0:
            rank_zero_info(f"{self.name} continues at step {trainer.global_step}")
        if metrics and self._resuming:
            epoch_metrics.restore_callback_metrics(trainer, metrics)
            trainer.should_stop = self._should_stop  # as before `min_epochs`
        if not position.in_middle_of_epoch(trainer):
            return
        states = dict(enumerate(self._random_states))
        position.return_to_batch(trainer, self.plan.seed_data, states.get(trainer.global_rank))
        if metrics:
            epoch_metrics.restore(trainer, metrics)
            self._logged_before = metrics["logged"]

    def _check_start(self, trainer: L.Trainer) -> None:
        if (trainer.ckpt_path or None) != self.ckpt_path:
            raise RuntimeError(
                f"{self.name} starts from {self.ckpt_path}, but the Trainer was given {trainer.ckpt_path}: "
                "write trainer.fit(ticket.model, ..., ckpt_path=ticket.ckpt_path)."
            )

    def before_search(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let a `Tuner` search on this ticket, from where the round starts; Lightning does so without callbacks."""
        self._tuning.begin(trainer, self.plan.seed_data)
        if not tuning.searched_by_tuner(trainer):
            return
        tuning.load_weights(pl_module, self.plan.directory.point(0) if self._makes_points else self._start)
        self._mask_module(pl_module)
        self._enforcement.begin_search(trainer)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        """Mask gradients, after the optimizer unscaled them and before Lightning clips them."""
        self._enforcement.mask_gradients(optimizer)

    # During the fit

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Make the epoch's randomness a function of (seed, epoch)."""
        position.start_epoch(trainer, self.plan.seed_data)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Let all processes begin with the buffers of the first, as they do under DDP."""
        sharded.share_buffers(pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Tighten masks, keep the curves now and then, and note where a checkpoint of this batch would stand."""
        if self._tightening and (chosen := self._tightening.tighten(trainer, self.masks)):
            self._tighten_to(chosen, trainer)
        if _is_logged(trainer):
            self._measured.log(trainer)
        if position.validation_follows(trainer):
            self._random_state = random_state()
        self._saving.batch_ends(trainer)

    def _tighten_to(self, masks: Masks, trainer: L.Trainer) -> None:
        """Go on under other masks, before anything looks at the weights."""
        self._enforcement.release()
        self._masks, self._density = masks, None
        self._enforcement = Enforcement(masks, find_prunable(self._module, self.plan.prunable))
        self._enforcement.begin(trainer)
        self._measured.beside = {"density": self.density}

    def _add_logged(self, trainer: L.Trainer) -> None:
        if self._logged_before:
            epoch_metrics.add(trainer, self._logged_before)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the weights of the best validation."""
        if trainer.state.fn != "fit":
            return
        if trainer.sanity_checking:
            self._measured.check_monitor(trainer)
            return
        if self._random_state is not None:
            set_random_state(self._random_state)  # so that a fit from a rewind point, saved before, goes on alike
            self._random_state = None
        if broadcast(self._measured.validate(trainer, counts=self._tightening is None or self._tightening.is_over)):
            self._saving.save_best(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look at how far the masks moved that would be drawn now, and end round 0 once they have settled."""
        if not self._settling:
            return
        distance = self._settling.end_epoch(trainer, self.masks)
        if distance is not None:
            pl_module.log("mask_distance", distance, rank_zero_only=True)
        trainer.should_stop = trainer.should_stop or broadcast(self._settling.is_over)

    def on_train_epoch_ended(self, trainer: L.Trainer) -> None:
        """After every other hook of the epoch's end: keep its metrics."""
        self._measured.end_epoch(trainer)
        self._saving.epoch_ends(trainer)
        self._logged_before = {}

    # After the fit

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the metrics of the end."""
        sharded.share_buffers(pl_module)
        self._measured.end(trainer)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the end, and draw the next ticket from it."""
        self._require_training(trainer)
        if self._tightening:
            self._tightening.require_end(trainer, self.density)
        self._measured.stop_clock(trainer)
        self._saving.save_end(trainer, self._trained)
        sharded.reshard(pl_module)
        if self.arm == TICKET and (trainer.is_global_zero or sharded.any_sharded(self.masks)):
            if self.round == 0:
                write_dense(self.plan, self.masks, self._module)
            elif self._tightening:
                write_tightened(self.files, self.masks)
            if self.plan.has_ticket(self.round + 1):
                draw_next(self.plan, self.round, self.masks, trainer)
        trainer.strategy.barrier("lt_lightning.draw_next")
        self.fitted = True
        self._saving.obey_signals()

    def _require_training(self, trainer: L.Trainer) -> None:
        if not self._trained and not self._resuming:
            raise RuntimeError(
                f"{self.name} trained 0 steps: the Trainer stopped at step {trainer.global_step}, where it started. "
                "Look at its max_steps, max_epochs and limit_train_batches."
            )
        if self._makes_points and not broadcast(self.plan.directory.rewind_point.exists()):
            raise RuntimeError(
                f"the rewind point at {self.plan.rewind_step} was never reached: round 0 ended after "
                f"{trainer.global_step} steps. Choose a smaller rewind_step."
            )

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take note of which weights the model holds: those of the end, unless a checkpoint is loaded."""
        self._measured.load_weights(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """As `on_test_start`, if this is a validation of its own; in a fit all validate the same network."""
        if trainer.state.fn == "fit":
            sharded.share_buffers(pl_module)
        else:
            self._measured.load_weights(trainer)

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """As `on_test_start`."""
        self._measured.load_weights(trainer)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let the tested metrics join the record, if the end or the early stop was tested."""
        self._measured.test(trainer, str(self.files.final), self.early_stop_path)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Let go of the optimizers and of the Trainer's callback list, with sharded parameters as they were before."""
        self._release(trainer)
        sharded.reshard(pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Let go of the optimizers."""
        self._release(trainer)

    def _release(self, trainer: L.Trainer) -> None:
        self._saving.release(trainer)
        chunks.release(trainer)
        self._execution.end()
        self._enforcement.release()
        ours = (_EpochEnd, _BeforeSearch)
        trainer.callbacks = [c for c in trainer.callbacks if not isinstance(c, ours)]  # type: ignore[attr-defined]

    def release_model(self) -> None:
        """Let the model be fitted by any Trainer, now that its round is done."""
        guard.take_off(self._module)

    # State

    @property
    def _makes_points(self) -> bool:
        return self.round == 0 and self.arm == TICKET

    def _make_saving(self) -> Saving:
        return Saving(self.plan, self.files, self._makes_points, self.state_key, self._measured.write_curves)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Complete what a fit continues from, with zeros under the masks in optimizer states too."""
        self._enforcement.clear(trainer)
        self._saving.complete(trainer, checkpoint)

    def state_dict(self) -> dict[str, Any]:
        """Random state, what finders found, time and what was measured so far."""
        if self._saving.saves_weights:
            return {}
        measured = self._measured.state_dict()
        state = {"random_states": gather(random_state()), "measured": measured, "found": self._tuning.found}
        state |= {"masks": self._tightening.state_dict(self.masks)} if self._tightening else {}
        return state | ({"settling": self._settling.state_dict()} if self._settling else {})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the state of this fit; from another's, a rewind point's, only its random state counts."""
        self._random_states = state["random_states"]
        if self._resuming:
            self._measured.load_state_dict(state["measured"])
        if self._resuming and self._settling and "settling" in state:
            self._settling.load_state_dict(state["settling"])
        if self._resuming and self._tightening:
            self._masks, self._density = self._tightening.load_state_dict(state["masks"], self.masks), None


class _BeforeSearch(Callback):
    """Tells the ticket that a finder is about to search: finders stand before all other callbacks."""

    def __init__(self, ticket: Ticket) -> None:
        self._ticket = ticket

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._ticket.before_search(trainer, pl_module)


class _EpochEnd:
    """Tells the ticket when an epoch has ended: Lightning calls checkpoint callbacks after all others and the module.

    The ticket cannot be a checkpoint callback itself: a Trainer with `enable_checkpointing=False` would refuse it.
    """

    def __init__(self, ticket: Ticket) -> None:
        self._ticket = ticket

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._ticket.on_train_epoch_ended(trainer)


def _epoch_end(ticket: Ticket) -> Any:
    """The callback that every Trainer takes for a checkpoint callback, whichever package it comes from."""
    made = type("_EpochEnd", (_EpochEnd, *twins(Checkpoint)), {})(ticket)
    hooks.leave_out_empty(made)
    return made


def _is_logged(trainer: L.Trainer) -> bool:
    """Whether the curves have a row of this step."""
    every = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return bool(every) and trainer.global_step % every == 0


def unwrap_compiled(model: nn.Module) -> L.LightningModule:
    """The module within `torch.compile`, or the module itself."""
    return cast(L.LightningModule, getattr(model, "_orig_mod", model))
