"""The fitted temperature makes probabilities match frequencies, and changes no decision."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from peterrec.model.data.histories import UserLabels
from peterrec.model.training.calibration import (
    TEMPERATURES,
    Samples,
    calibration_error,
    chance_error,
    fit_temperature,
    reliability,
    tag_samples,
)
from peterrec.model.training.finetune.finetune import FinetuneSettings, finetune
from peterrec.model.training.finetune.many_tasks import TaskToTrain, finetune_many
from tests.model.small_shop import groups, shop_histories, small_backbone

SETTINGS = FinetuneSettings(
    kind="classification", bottleneck=4, epochs=3, batch_size=16, learning_rate=0.03, seed=1
)


def drawn_choices(count: int, scale: float, alternatives: int = 4) -> Samples:
    """Answers drawn from the softmax of logits that are then stretched by ``scale``."""
    generator = torch.Generator().manual_seed(5)
    logits = 1.5 * torch.randn(count, alternatives, generator=generator)
    chosen = torch.multinomial(torch.softmax(logits, 1), 1, generator=generator).squeeze(1)
    return Samples(scale * logits, chosen)


@pytest.mark.parametrize("scale", [0.2, 1.0, 3.0])
def test_the_fit_finds_the_scale_that_logits_were_stretched_by(scale):
    assert fit_temperature(drawn_choices(20_000, scale)) == pytest.approx(scale, rel=0.05)


def test_the_fit_has_the_lowest_loss_of_all_temperatures_near_it():
    samples = drawn_choices(500, 2.0)
    best = fit_temperature(samples)

    def loss(temperature: float) -> float:
        logits = samples.logits.double() / temperature
        own = torch.nn.functional.cross_entropy(logits, samples.chosen, reduction="sum")
        return float(own) + 1 / temperature + np.log(temperature)

    assert loss(best) < min(loss(0.99 * best), loss(1.01 * best))


def test_a_handful_of_right_answers_does_not_make_the_rest_certain():
    five = Samples(2 * torch.eye(5), torch.arange(5))
    assert 0.2 < fit_temperature(five) < 1


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_the_temperature_stays_within_what_a_bundle_may_say(scale):
    low, high = TEMPERATURES
    assert low <= fit_temperature(drawn_choices(2_000, scale)) <= high


def test_logits_that_are_mostly_wrong_reach_the_upper_bound():
    wrong = Samples(8 * torch.eye(3).repeat(900, 1), torch.tensor([1, 2, 0]).repeat(900))
    assert fit_temperature(wrong) > 100


def test_the_calibration_error_is_the_distance_between_confidence_and_accuracy():
    even = torch.tensor([[np.log(0.8), np.log(0.2)]]).repeat(10, 1)
    right = torch.tensor([0] * 8 + [1] * 2)
    assert calibration_error(Samples(even, right)) == pytest.approx(0, abs=1e-6)
    assert calibration_error(Samples(even, 1 - right)) == pytest.approx(0.6, abs=1e-6)


def test_the_calibration_error_weighs_fifteen_ranges_by_their_answers():
    sure = torch.tensor([0.95, 0.95, 0.95, 0.55])
    logits = torch.stack([sure.log(), (1 - sure).log()], 1)
    samples = Samples(logits, torch.tensor([0, 0, 1, 0]))
    wanted = (3 * abs(0.95 - 2 / 3) + abs(0.55 - 1)) / 4
    assert calibration_error(samples) == pytest.approx(wanted, abs=1e-6)


def test_calibrated_answers_show_the_error_that_chance_explains():
    errors = [
        (calibration_error(samples), chance_error(samples))
        for samples in (drawn_choices(count, 1.0) for count in (200, 2_000, 20_000))
    ]
    for error, chance in errors:
        assert chance / 2 < error < 2 * chance


def test_every_pair_of_user_and_tag_is_a_choice_of_its_own():
    samples = tag_samples(torch.tensor([[1.0, -2.0]]), torch.tensor([[1.0, 0.0]]))
    assert samples.logits.tolist() == [[0.0, 1.0], [0.0, -2.0]]
    assert samples.chosen.tolist() == [1, 0]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return small_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.mark.parametrize("kind", ["classification", "tags"])
def test_fine_tuning_fits_the_temperature_and_reports_both_errors(loaded, kind):
    task = finetune(loaded, shop_histories(), groups(), replace(SETTINGS, kind=kind))
    assert task.temperature != 1.0
    assert 0 <= task.metrics["ece"] <= 1
    assert 0 <= task.metrics["ece_uncalibrated"] <= 1
    assert task.record["temperature"] == task.temperature


@pytest.mark.parametrize(
    ("kind", "answer"), [("ranking", ("target", "other")), ("value", ("1", "2"))]
)
def test_kinds_without_probabilities_keep_the_temperature_of_one(loaded, kind, answer):
    labels = UserLabels({u: (answer[i % 2],) for i, u in enumerate(groups().by_user)}, "file")
    task = finetune(loaded, shop_histories(), labels, replace(SETTINGS, kind=kind))
    assert task.temperature == 1.0
    assert "ece" not in task.metrics


def test_tasks_trained_together_are_calibrated_as_one_alone(loaded):
    whole = replace(SETTINGS, item_dropout=0.0, batch_size=128)
    settings = replace(whole, blocks=(1,), has_cls=False)
    alone = finetune(loaded, shop_histories(), groups(), settings)
    (together,) = finetune_many(loaded, shop_histories(), [TaskToTrain(groups(), settings)])
    assert together.temperature == pytest.approx(alone.temperature, rel=0.01)
    assert together.metrics["ece"] == pytest.approx(alone.metrics["ece"], abs=0.01)


def test_the_reliability_ranges_add_up_to_the_samples_and_to_the_calibration_error():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(500, 3, generator=generator)
    samples = Samples(logits, torch.randint(0, 3, (500,), generator=generator))
    ranges = reliability(samples, 0.7)
    assert sum(each.samples for each in ranges) == 500
    assert all(each.low < each.confidence <= each.high for each in ranges)
    error = sum(abs(each.confidence - each.accuracy) * each.samples for each in ranges) / 500
    assert error == pytest.approx(calibration_error(samples, 0.7), abs=1e-12)
