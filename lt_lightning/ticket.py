"""The ticket: a Lightning callback that trains a model under masks for one fit, and draws the next masks from it."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import BaseFinetuning, Callback, Checkpoint, ModelCheckpoint
from lightning.pytorch.plugins.precision import DoublePrecision
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn
from torch.optim import Optimizer

from lt_lightning import sharded, sparse, strategies
from lt_lightning.controls import Ingredients
from lt_lightning.disk import loading
from lt_lightning.disk.rundir import TICKET, ArmDirectory
from lt_lightning.fit import (
    beside,
    chunks,
    drawn,
    epoch_metrics,
    frozen,
    guard,
    hooks,
    lazy,
    learning_rates,
    moments,
    position,
    pulse,
    start,
    tested,
    tuning,
)
from lt_lightning.fit.enforcement import Enforcement
from lt_lightning.fit.interruption import Interruption, leave_to_us
from lt_lightning.fit.learning_rates import LearningRates
from lt_lightning.fit.measurements import Measurements
from lt_lightning.fit.same_fit import SameFit
from lt_lightning.fit.saving import Saving
from lt_lightning.identity import mark
from lt_lightning.masks import Masks, all_kept, check_fit, density, plain_name
from lt_lightning.plan import Plan, unwrap
from lt_lightning.processes import broadcast, end_at_exit, gather, wait
from lt_lightning.prunable import check_norms, find_prunable, weights_of
from lt_lightning.pruning import draw_next, write_dense, write_tightened
from lt_lightning.records import Record, read_curves
from lt_lightning.rehearsal import rehearse
from lt_lightning.rewinds import fine_tune
from lt_lightning.seeding import derive, random_state, seed_all, set_random_state
from lt_lightning.tightening import DISTANCE, Settling, Tightening
from lt_lightning.twins import twins

CheckDrawn = Callable[[Masks, L.Trainer], None]
"""Looks at the weights that a fit begins with, some of which hooks may have drawn, and raises if they are wrong."""


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

    def __init__(
        self,
        plan: Plan,
        arm: str,
        ingredients: Ingredients,
        model: nn.Module,
        resume: Path | None,
        check_drawn: CheckDrawn | None = None,
    ) -> None:
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
        self._given = ingredients.masks
        self._check_drawn = check_drawn
        self._standing: frozen.Standing | None = None
        self._groups: list[int] = []
        self._density: float | None = None
        self._enforcement = Enforcement({}, {})
        tightens = plan.gradual is not None and self.round > 0 and arm == TICKET
        self._tightening = Tightening(plan, self.round) if tightens else None
        watches = plan.early_bird is not None and self.round == 0 and arm == TICKET
        self._settling = Settling(plan) if watches else None
        self._measured = Measurements(plan.monitor, plan.mode, str(plan.directory.path))
        self._rates = LearningRates()
        self._tested: list[str] = []
        self._tuning = tuning.Tuning()
        self._same = SameFit(self._module)
        self._trained = False
        self._random_states: list[Any] = []
        self._random_state: Any = None
        self._epoch_metrics: list[epoch_metrics.State] = []
        self._logged_before: dict[str, Any] = {}
        self._hold_learning_rate = False
        self._should_stop = False
        self._batches = 0
        self._pulse: Any = None
        self._shown: Enforcement | None = None
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
        if self._masks:
            return self._masks
        if lazy.is_made_late(self._module) and next(self._module.parameters(), None) is None:
            name = type(self._module).__name__
            raise ValueError(
                f"{name} has nothing to prune yet, as it makes its layers in setup() or configure_model(), which the "
                "Trainer calls: look at ticket.masks once the fit has begun, such as in on_train_start of a callback."
            )
        return self._dense_masks()

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
    def monitor_found(self) -> str | None:
        """The metric that monitor="auto" stands for; None: a name was given, or no validation loss was found."""
        return self._measured.monitor_found

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
        leave_to_us(trainer)
        self._pulse = pulse.add_to(trainer, self)
        if stage == "test":
            self._seed("test", trainer)  # before its loaders draw
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
        if not lazy.is_made_late(pl_module) or len(weights_of(pl_module, self._masks)) == len(self._masks) > 0:
            self._check_masks(pl_module)  # else its parameters may not exist yet
        self._same.check_model(trainer, self.plan)
        self._require_own_directory(trainer)
        beside.check(trainer, self, resumes=self._resuming)
        self._require_point_of_thaw(trainer)
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

    def _require_point_of_thaw(self, trainer: L.Trainer) -> None:
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        if unwrap(self.plan.rewind) is fine_tune and any(isinstance(c, twins(BaseFinetuning)) for c in callbacks):
            raise ValueError(
                "rewind=fine_tune goes on with the optimizer of the end, which holds layers that BaseFinetuning thaws "
                "later in each round: choose rewind=to_point or keep_weights (prune.rewind), or leave the callback out."
            )

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take note of what the checkpoint asks for: no schedules mean that the learning rate is held."""
        self._hold_learning_rate = checkpoint.get("lr_schedulers") == []
        self._rates.load(checkpoint.get("learning_rates", []) if self._resuming else [])
        self._epoch_metrics = checkpoint.get("epoch_metrics", [])
        self._should_stop = checkpoint.get("should_stop", False)
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            checkpoint.pop("loops", None)  # a trial of one batch would be over before a later step

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check the masks against the model and mask it, so that even the sanity check sees the ticket."""
        self._tuning.conclude(trainer, pl_module)
        self._same.check_training(trainer, self.plan, self._tuning.found)
        self._measured.start_clock()
        self._measured.keep_monitor(broadcast(self.plan.directory.monitor_found()))
        self._groups = [len(each.param_groups) for each in trainer.optimizers]
        if self._standing:
            self._standing.add_groups(trainer, pl_module)
        self._hold(pl_module)
        if self._starts_drawn and lazy.is_made_late(pl_module):
            drawn.write(self.plan, self.round, self.arm, self.masks, pl_module)
        self._enforcement.mask_weights()

    def _hold(self, pl_module: L.LightningModule) -> None:
        """Decide what is prunable, for this fit and the next ticket, and get ready to hold the module to its masks."""
        sharded.reshard(pl_module)
        self._masks = self._masks or self._dense_masks()
        self._shard_masks(pl_module)
        parameters = self._check_masks(pl_module)
        self._enforcement.release()
        self._enforcement = Enforcement(self.masks, parameters)

    def _dense_masks(self) -> Masks:
        with frozen.as_made(self._module):
            return all_kept(find_prunable(self._module, self.plan.prunable))

    def _shard_masks(self, pl_module: L.LightningModule) -> None:
        """Keep of each mask what this process holds of its parameter; one whole mask at a time is in memory."""
        parameters = weights_of(pl_module, self._masks)
        if not sharded.any_sharded(parameters):
            return
        sharded.check_parts(parameters)
        if not sharded.any_sharded(self._masks):
            check_fit(self._masks, parameters)
            self._masks = {name: sharded.spread(self._masks[name], each) for name, each in parameters.items()}
        self._density = density(self._masks)  # here, where all processes are: counting needs them

    def _check_masks(self, pl_module: L.LightningModule) -> dict[str, nn.Parameter]:
        parameters = weights_of(pl_module, self.masks)
        check_fit(self.masks, parameters)
        check_norms(self.masks, pl_module)
        self.plan.check_patterns(self.masks)
        return parameters

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Everything is restored: put the data where it stood. What begins the fit waits for the hooks of others."""
        self._check_start(trainer)
        self._same.check_data(trainer, self.plan, self.name)
        self._trained = True
        if self._standing and trainer.global_step > 0:
            frozen.switch_off(pl_module, self._standing.off)
        position.finish_epoch(trainer)
        if self._hold_learning_rate:
            learning_rates.hold(trainer)
        if self.arm == TICKET:  # from which the next round may be fine-tuned
            self._rates.begin(trainer)
        self._return_to_position(trainer)
        moments.after_start(trainer, partial(self._started, trainer, pl_module))

    def _started(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Every `on_train_start` is over: what it wrote is masked and saved, or was restored already."""
        if self.ckpt_path and start.may_write(trainer):
            start.restore_weights(pl_module, Path(self.ckpt_path))
        self._note_drawn(trainer, pl_module)
        self._enforcement.begin(trainer, None if self._follows else pl_module)
        if self._follows:
            self._enforcement.release()
        self._leave_out_hooks(trainer)
        if self._settling:
            self._settling.begin(trainer, self.masks)
        if self._tightening:
            self._tightening.begin(trainer, self.masks)
            self._measured.beside = {"density": self.density}
        path = self.files.curves if trainer.is_global_zero else None
        self._measured.start_curves(path)
        if self._logged_before:
            moments.after_each_batch(trainer, partial(self._add_logged, trainer))
        self._begin_sparse(trainer, pl_module)
        self._saving.begin(trainer)
        if self._makes_points and trainer.global_step == 0:
            rehearse(self.rehearsed, self.plan.directory, trainer)
        if self.plan.steps_per_batch > 1:
            due_in = partial(self._due_in, trainer)
            chunks.Chunks(trainer, self.plan.steps_per_batch, (Ticket, pulse.Pulse), due_in).begin()

    def _leave_out_hooks(self, trainer: L.Trainer) -> None:
        """Let Lightning pass over the hooks in which there is nothing to do."""
        watches = strategies.is_sharded(trainer.strategy) or self._enforcement.checks_batches
        hooks.leave_out(self, hooks.START, when=not watches)
        hooks.leave_out(self, "on_before_optimizer_step", when=not self._enforcement.checks_steps)

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

    @property
    def _starts_drawn(self) -> bool:
        """Whether this is a control that starts from weights that have just been drawn, and no restart of it."""
        return self.arm != TICKET and self._start is None and not self._resuming

    def _note_drawn(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look at weights that hooks have drawn since the model was made, before they are masked and trained."""
        if self.ckpt_path is None and self._check_drawn:
            self._check_drawn(self.masks, trainer)
        if self._starts_drawn:
            drawn.update(self.files.ticket, self.masks, pl_module)

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
        self._tuning.begin(trainer, pl_module, self.plan.seed_data)
        if not tuning.searched_by_tuner(trainer):
            return
        tuning.load_weights(pl_module, self.plan.directory.point(0) if self._makes_points else self._start)
        self._hold(pl_module)
        self._enforcement.begin_search()

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        """Mask gradients that were not accumulated but assigned, before Lightning clips them."""
        self._enforcement.check_step()
        self._enforcement.mask_gradients()

    # During the fit

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Make the epoch's randomness a function of (seed, epoch)."""
        position.start_epoch(trainer, self.plan.seed_data)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Let all processes begin with the buffers of the first, as they do under DDP; mask what others wrote."""
        sharded.share_buffers(pl_module)
        self._enforcement.check_batch()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Tighten masks, keep the curves now and then, and note where a checkpoint of this batch would stand."""
        self._batches += 1
        if self._enforcement.look(self._batches):
            self._leave_out_hooks(trainer)
        if self._tightening and (chosen := self._tightening.tighten(trainer, self.masks)):
            self._tighten_to(chosen, trainer)
        if _is_logged(trainer):
            self._measured.log(trainer)
        if position.validation_follows(trainer):
            self._random_state = random_state()
        self._saving.batch_ends(trainer)
        self._pulse.beat(trainer)

    def _tighten_to(self, masks: Masks, trainer: L.Trainer) -> None:
        """Go on under other masks, before anything looks at the weights."""
        before = self._enforcement
        before.release()
        self._masks, self._density = masks, None
        self._enforcement = Enforcement(masks, weights_of(self._module, masks))
        self._enforcement.begin(trainer, self._module)
        self._enforcement.continue_from(before)
        self._leave_out_hooks(trainer)
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
            pl_module.log(DISTANCE, distance, rank_zero_only=True)
        trainer.should_stop = trainer.should_stop or broadcast(self._settling.is_over)

    def on_train_epoch_ended(self, trainer: L.Trainer) -> None:
        """After every other hook of the epoch's end: check the weights and keep the metrics."""
        self._enforcement.require_zeros(trainer, "at the end of an epoch")
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
        self._enforcement.require_zeros(trainer, "at the end of the fit")
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
        """Mask what is tested, note which weights that is, and let the test draw the same numbers whenever it runs."""
        self._look(trainer, pl_module)
        self._seed("test", trainer)
        fitted = self.fitted and pl_module is self._module
        self._tested = tested.moments(trainer, pl_module, self.files, self._measured.loaded) if fitted else []

    def _seed(self, purpose: str, trainer: L.Trainer) -> None:
        """Make what is drawn from now on a function of the seed and the process."""
        seed_all(derive(self.plan.seed_data, purpose, trainer.global_rank))

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Mask what is validated; within a fit, check that it was masked, and let all validate the same network."""
        if trainer.state.fn != "fit":
            self._look(trainer, pl_module)
            return
        sharded.share_buffers(pl_module)
        if trainer.sanity_checking:
            self._enforcement.mask_weights()
        else:
            self._enforcement.require_zeros(trainer, "at a validation")

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Mask what predicts."""
        self._look(trainer, pl_module)

    def _look(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._measured.load_weights(trainer)
        self.show(pl_module)

    def show(self, pl_module: L.LightningModule) -> None:
        """Mask a module that is validated, tested or asked for predictions, also before its fit."""
        self.stop_showing()
        masks = self._masks if self._tightening else self._given
        found = {plain_name(name): each for name, each in pl_module.named_parameters() if plain_name(name) in masks}
        spread = {name: sharded.spread(masks[name], each) for name, each in found.items()}
        self._shown = Enforcement(spread, found)
        self._shown.mask_weights()
        if not sharded.any_sharded(spread):
            self._shown.watch(pl_module)  # for hooks that write weights after this one
            self._shown.looks_closely = True

    def stop_showing(self) -> None:
        """Let the layers go that a validation, test or prediction looked at."""
        if self._shown:
            self._shown.release()
        self._shown = None

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let the tested metrics join the record, under a name that tells which weights were tested."""
        if self._shown and self._shown.was_masked_again:
            self._tested = []  # a hook of the test has put other weights in
        self._measured.test(trainer, self._tested)
        if not self._tested:
            own = pl_module is self._module
            rank_zero_warn(tested.not_recorded(self.name, trainer.ckpt_path, fitted=self.fitted, own=own))

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Let go of the optimizers and of the Trainer's callback list, with sharded parameters as they were before."""
        self._release(trainer)
        sharded.reshard(pl_module)
        if stage == "fit" and self.fitted:
            self._seed("after the fit", trainer)  # the loop's body goes on alike after a fit that was interrupted

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Let go of the optimizers."""
        self._release(trainer)

    def _release(self, trainer: L.Trainer) -> None:
        self.stop_showing()
        self._saving.release(trainer)
        chunks.release(trainer)
        self._execution.end()
        self._enforcement.release()
        self._rates.release()
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
        own = partial(mark, self.plan, self.round, self.arm)
        key, write_curves = self.state_key, self._measured.write_curves
        return Saving(self.plan, self.files, self._makes_points, key, write_curves, own, self._mask_state)

    def _mask_state(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        return self._enforcement.mask_state(state)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Complete what a fit continues from, with zeros under the masks in optimizer states too."""
        self._enforcement.require_zeros(trainer, "before a save")
        self._enforcement.clear(trainer)
        if self._hold_learning_rate:
            checkpoint["lr_schedulers"] = []  # for whoever continues from it
        self._saving.complete(trainer, checkpoint, {"learning_rates": self._rates.state(trainer)})

    def state_dict(self) -> dict[str, Any]:
        """Random state, what finders found, time and what was measured so far."""
        if self._saving.saves_weights:
            return {}
        measured = self._measured.state_dict()
        state = {"random_states": gather(random_state()), "measured": measured, "found": self._tuning.found}
        state["standing"] = frozen.standing(self._module, self._groups)
        state |= {"masks": self._tightening.state_dict(self.masks)} if self._tightening else {}
        return state | ({"settling": self._settling.state_dict()} if self._settling else {})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the state of this fit; from another's, a rewind point's, only its random state counts."""
        self._random_states = state["random_states"]
        self._standing = frozen.Standing(**state["standing"]) if "standing" in state else None
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
