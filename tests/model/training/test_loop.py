"""Epochs, early stopping, best weights and learning rates of every training run."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from peterrec.model.errors import TrainingDiverged
from peterrec.model.training.loop import (
    EpochPlan,
    Epochs,
    falling,
    require_finite,
    rising_then_falling,
    schedule,
)


class Run:
    """A module whose weight is the number of its epoch, and validation losses given beforehand."""

    def __init__(self, losses: list[float], limit: int = 10, patience: int = 10) -> None:
        self.module = nn.Linear(1, 1, bias=False)
        self.epochs = Epochs(self.module, limit, patience)
        self._losses = losses

    def train(self) -> float:
        with torch.no_grad():
            self.module.weight.fill_(len(self.epochs))
        return 0.0

    def validate(self) -> tuple[float, dict[str, float]]:
        return self._losses[len(self.epochs)], {}

    def go(self, after_epoch: Callable[[], None] = lambda: None) -> None:
        plan = EpochPlan(self.train, self.validate, 5, 2, adam((0.1, 0.2)))
        self.epochs.run(plan, after_epoch)


def test_the_best_epochs_weights_are_restored():
    run = Run([3.0, 1.0, 2.0], limit=3)
    run.go()
    assert run.epochs.best == 1
    assert run.module.weight.item() == 1.0


def test_of_equally_good_epochs_the_first_is_the_best():
    run = Run([2.0, 1.0, 1.0], limit=3)
    run.go()
    assert run.epochs.best == 1


def test_training_stops_when_its_patience_is_used_up():
    run = Run([3.0, 2.0, 2.0, 2.5, 1.0], patience=2)
    run.go()
    assert [record.validation_loss for record in run.epochs.records] == [3.0, 2.0, 2.0, 2.5]


def test_a_run_without_epochs_has_no_best_one():
    assert Run([]).epochs.best == -1


def test_an_epochs_record_has_its_rates_times_rows_and_memory():
    run = Run([1.0], limit=1)
    run.go()
    (record,) = run.epochs.records
    assert (record.sequences, record.validation_sequences) == (5, 2)
    assert record.learning_rates == [0.1, 0.2]
    assert record.peak_rss_bytes is not None
    assert record.peak_rss_bytes > 10 << 20
    assert record.cuda_peak_bytes is None
    assert record.ended_at is not None
    assert record.ended_at.endswith("Z")


def test_something_can_be_done_after_every_epoch():
    run, counts = Run([1.0, 2.0], limit=2), []
    run.go(after_epoch=lambda: counts.append(len(run.epochs)))
    assert counts == [1, 2]


@pytest.mark.parametrize("rates", [(0.1, 0.2)])
def test_every_group_keeps_its_own_rate_while_all_fall_to_zero(rates):
    optimizer = adam(rates)
    rates_of = schedule(optimizer, [falling(4), falling(4)])
    seen = [rates_now(optimizer)]
    for _ in range(4):
        optimizer.step()
        rates_of.step()
        seen.append(rates_now(optimizer))
    shares = (1, 0.75, 0.5, 0.25, 0)
    assert seen == [pytest.approx([share * rate for rate in rates]) for share in shares]


def test_a_resumed_run_has_the_rates_of_the_uninterrupted_one():
    whole, resumed = adam((0.1,)), adam((0.1,))
    rates_of = schedule(whole, [rising_then_falling(100)])
    for _ in range(30):
        whole.step()
        rates_of.step()
    schedule(resumed, [rising_then_falling(100)], steps_done=30)
    assert rates_now(resumed) == rates_now(whole)


def test_the_rate_rises_for_two_percent_of_the_steps_and_then_falls():
    shape = rising_then_falling(100)
    assert [shape(step) for step in (0, 1, 2, 51, 99, 100)] == pytest.approx(
        [0.5, 1.0, 1.0, 0.5, 1 / 98, 0.0]
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_refused_with_its_step(value):
    with pytest.raises(TrainingDiverged, match=r"at step 8 with learning rate 0\.1"):
        require_finite(torch.tensor(value), 7, 0.1)


def adam(rates: tuple[float, ...]) -> torch.optim.Adam:
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates]
    return torch.optim.Adam(groups, fused=True)


def rates_now(optimizer: torch.optim.Adam) -> list[float]:
    return [group["lr"] for group in optimizer.param_groups]
