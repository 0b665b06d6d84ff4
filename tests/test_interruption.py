"""Ctrl-C, SIGTERM and SIGUSR1: the fit ends after the step at hand, its state is saved, no step is trained twice."""

import inspect
import logging
import os
import random
import signal
import threading
import time
import warnings
from contextlib import suppress

import lightning as L
import pair
import pytest
from sampling import few
from test_lottery import assert_same_state, final, records_without_time
from tiny import STEPS_PER_EPOCH, play

from lt_lightning.disk.rundir import Checkpoint
from lt_lightning.fit.interruption import REQUEUE, SIGNALS, Interrupted, Interruption


class SignalAt(L.Callback):
    """Sends signals to this process at the start of its n-th training batch."""

    def __init__(self, count, *signals):
        self.left, self.signals = count, signals

    def on_train_batch_start(self, *_):
        self.left -= 1
        if self.left == 0:
            for number in self.signals:
                os.kill(os.getpid(), number)


def interrupted(directory, count, *signals, **arguments):
    sender = SignalAt(count, *signals)
    with pytest.raises(SystemExit) as raised:
        play(directory, make_callbacks=lambda: [sender], **arguments)
    return raised.value


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("count", few([1, 3, STEPS_PER_EPOCH, 7, 3 * STEPS_PER_EPOCH, 20], 1, 2, 5))
def test_a_fit_that_is_told_to_end_saves_the_step_at_hand_and_goes_on_from_there(tmp_path, number, count):
    raised = interrupted(tmp_path / "told", count, number)
    assert isinstance(raised, Interrupted)
    assert raised.code == 128 + number
    round, step = divmod(count, 3 * STEPS_PER_EPOCH)
    if step:
        last = Checkpoint(tmp_path / "told" / f"round-0{round}" / "last.ckpt")
        assert last["global_step"] == step
    models = play(tmp_path / "told")
    assert sum(len(model.seen) for model in models.values()) == 30 - count
    play(tmp_path / "whole")
    assert records_without_time(tmp_path / "told") == records_without_time(tmp_path / "whole")
    assert_same_state(final(tmp_path / "told", "round-01"), final(tmp_path / "whole", "round-01"))


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_do_not_mind(tmp_path, workers):
    assert interrupted(tmp_path / "told", 8, signal.SIGTERM, workers=workers).code == 143
    play(tmp_path / "told", workers=workers)
    play(tmp_path / "whole")
    assert_same_state(final(tmp_path / "told", "round-01"), final(tmp_path / "whole", "round-01"))


def test_gradients_that_have_gathered_are_not_forgotten(tmp_path):
    options = {"accumulate_grad_batches": 2, "max_epochs": 3}
    interrupted(tmp_path / "told", 3, signal.SIGTERM, options=options)
    assert Checkpoint(tmp_path / "told" / "round-00" / "last.ckpt")["global_step"] == 2
    play(tmp_path / "told", options=options)
    play(tmp_path / "whole", options=options)
    assert_same_state(final(tmp_path / "told", "round-01"), final(tmp_path / "whole", "round-01"))


def test_asked_twice_it_ends_at_once(tmp_path):
    raised = interrupted(tmp_path, 8, signal.SIGINT, signal.SIGINT)
    assert not isinstance(raised, Interrupted)  # but Lightning's own answer to a KeyboardInterrupt
    assert Checkpoint(tmp_path / "round-00" / "last.ckpt")["global_step"] == STEPS_PER_EPOCH


def test_whoever_listened_before_listens_again_after_the_fit(tmp_path):
    heard = []
    before = {number: signal.signal(number, lambda n, _: heard.append(n)) for number in SIGNALS}
    try:
        interrupted(tmp_path, 3, signal.SIGTERM)
        for number in SIGNALS:
            os.kill(os.getpid(), number)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert heard == list(SIGNALS)


class SignalTest(L.Callback):
    def __init__(self, number):
        self.number = number

    def on_test_start(self, *_):
        os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", SIGNALS)
def test_between_fits_a_run_ends_at_once(tmp_path, number):
    with pytest.raises(SystemExit) as raised:
        play(tmp_path, make_callbacks=lambda: [SignalTest(number)])
    assert raised.value.code == (1 if number == signal.SIGINT else 128 + number)
    assert signal.getsignal(signal.SIGTERM) == signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
    assert [len(model.seen) for model in play(tmp_path).values()] == [0, 15]


def test_sigusr1_is_left_to_whoever_listens_to_it_already(tmp_path):
    heard = []
    before = signal.signal(signal.SIGUSR1, lambda n, _: heard.append(n))
    try:
        sender = SignalAt(3, signal.SIGUSR1)
        play(tmp_path, make_callbacks=lambda: [sender], rounds=0)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert heard == [signal.SIGUSR1]


def test_a_thread_that_is_not_the_main_one_hears_nothing(tmp_path):
    listener = Interruption()
    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=listener.note)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before
    listener.obey()


def test_a_job_in_the_background_goes_on_ignoring_ctrl_c(tmp_path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        play(tmp_path, make_callbacks=lambda: [SignalAt(3, signal.SIGINT)], rounds=0)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_slurm_job_is_told_that_lightning_will_not_requeue_it(tmp_path):
    from lightning.pytorch.plugins.environments import SLURMEnvironment

    with pytest.warns(UserWarning, match="Lightning will not requeue this Slurm job"):
        play(tmp_path / "a", rounds=0, options={"plugins": [SLURMEnvironment()]}, test=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Lightning will not requeue")
        play(tmp_path / "b", rounds=0, options={"plugins": [SLURMEnvironment(auto_requeue=False)]}, test=False)


@pytest.fixture
def submitit(monkeypatch):
    """A job of submitit on Slurm; what its handler heard."""
    heard = []

    def requeue(number, frame):
        heard.append(number)
        raise SystemExit(-1)

    before = signal.signal(REQUEUE, requeue)
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    yield heard
    signal.signal(REQUEUE, before)


def test_submitit_requeues_its_job_when_the_step_at_hand_is_saved(tmp_path, submitit):
    raised = interrupted(tmp_path / "told", 8, signal.SIGTERM, REQUEUE)
    assert (raised.code, submitit) == (-1, [REQUEUE])
    assert Checkpoint(tmp_path / "told" / "round-00" / "last.ckpt")["global_step"] == 8
    play(tmp_path / "told")
    play(tmp_path / "whole")
    assert_same_state(final(tmp_path / "told", "round-01"), final(tmp_path / "whole", "round-01"))


def test_a_job_of_submitit_saves_the_step_at_hand_at_sigterm_and_goes_on(tmp_path, submitit):
    play(tmp_path / "told", make_callbacks=lambda: [SignalAt(3, signal.SIGTERM)])
    assert submitit == []
    play(tmp_path / "whole")
    assert records_without_time(tmp_path / "told") == records_without_time(tmp_path / "whole")


def test_the_program_is_told_where_it_goes_on(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        interrupted(tmp_path, 8, signal.SIGTERM)
        play(tmp_path, rounds=0)
    said = " ".join(record.getMessage() for record in caplog.records)
    assert f"interrupted: {tmp_path}/round-00/last.ckpt is saved, and the same program goes on from there" in said
    assert "round-00 continues at step 8" in said


# Several processes


@pytest.mark.slow
def test_a_signal_to_one_of_two_processes_ends_both_with_all_saved(tmp_path, record_property):
    """50 SIGTERMs at random instants, from before the process group to the end; the run goes on each time."""
    draws, ended, runs = random.Random(0), [], 0
    begin = time.monotonic()
    assert pair.ends(pair.start(tmp_path / "whole"), 120) == [0, 0]
    length = time.monotonic() - begin
    while len(ended) < 50:
        directory, rank, delay = tmp_path / f"told-{runs}", draws.randrange(2), draws.uniform(0, 0.8 * length)
        processes = pair.start(directory)
        time.sleep(delay)
        with suppress(ProcessLookupError):
            os.kill(processes[rank], signal.SIGTERM)
        begin = time.monotonic()
        codes = pair.ends(processes, 60)
        late = codes[1 - rank] == 0 and codes[rank] in (0, -signal.SIGTERM)  # the run was over
        assert late or codes == [143, 143], f"{directory}: rank {rank} after {delay:.2f} s: {codes}"
        ended.append((not late, rank, time.monotonic() - begin))
        if late:
            assert_alike(directory, tmp_path / "whole")
            runs += 1
    assert pair.ends(pair.start(directory), 120) == [0, 0]
    assert_alike(directory, tmp_path / "whole")
    told = [sum(is_told and rank == each for is_told, rank, _ in ended) for each in range(2)]
    longest = max(seconds for *_, seconds in ended)
    record_property(
        "table",
        f"50 SIGTERMs: {told[0]} to the first and {told[1]} to the second process ended both with 143, "
        f"{50 - sum(told)} came too late; none hung, the longest took {longest:.1f} s; {runs + 1} runs, the same bits",
    )
    assert sum(told) >= 30


def assert_alike(told, whole):
    assert records_without_time(told) == records_without_time(whole)
    for fit in ("round-00", "round-01", "round-01/reinit", "round-02", "round-02/reinit"):
        assert_same_state(final(told, fit), final(whole, fit))


def test_lightning_asks_before_each_batch_and_has_a_handler_of_its_own():
    """The names that are replaced while several processes train."""
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    assert callable(trainer._signal_connector._sigterm_notifier_fn)
    assert "_broadcast_sigterm_tensor" in inspect.getsource(type(trainer.fit_loop.epoch_loop).advance)
    assert "[self._sigterm_notifier_fn]" in inspect.getsource(trainer._signal_connector.register_signal_handlers)
