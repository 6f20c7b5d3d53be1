"""Pretraining learns, repeats itself bit for bit, resumes exactly and refuses what cannot work."""

from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
import torch

from peterrec.model.data.histories import Histories
from peterrec.model.data.splits import split_users
from peterrec.model.errors import (
    CheckpointMismatch,
    DiskFull,
    SplitEmpty,
    TensorFileInvalid,
    TrainingDiverged,
    UnknownItems,
)
from peterrec.model.files.tensors import write_tensors
from peterrec.model.progress import Progress
from peterrec.model.spec import CLS, FIRST_ITEM, MASK, PAD, BackboneSpec
from peterrec.model.training.batches import seeded
from peterrec.model.training.next_items import Ranking, by_backbone, hold_out, rank_all
from peterrec.model.training.pretrain.examples import (
    NO_TARGET,
    cloze_batch,
    cut_windows,
    newest_item_batch,
    next_item_batch,
    second_views,
    shorten,
)
from peterrec.model.training.pretrain.pretrain import pretrain
from peterrec.model.training.pretrain.state import CHECKPOINT
from tests.full_disk import files_of_at_most
from tests.model.small_shop import TINY, shop_histories

CAUSAL = BackboneSpec(item_count=20, channels=4, dilations=(1,), max_len=4)
NON_CAUSAL = replace(CAUSAL, is_causal=False)


class Interrupted(Exception):
    """Stops a run from outside."""


def weights_of(trained):
    return {**trained.backbone.state_dict(), **trained.output.state_dict()}


def assert_same_weights(one, other):
    for name, tensor in weights_of(one).items():
        assert torch.equal(tensor, weights_of(other)[name]), name


def test_windows_cover_every_item_but_the_first_as_a_target_once():
    row = np.arange(10)
    windows = [row[start:end].tolist() for _, start, end in cut_windows([row], 4)]
    assert windows == [[5, 6, 7, 8, 9], [1, 2, 3, 4, 5], [0, 1]]


@pytest.mark.parametrize("length", [2, 5, 6, 9, 10, 17])
def test_windows_that_move_have_every_target_once_and_are_as_many(length):
    row = np.arange(length)
    cuts = {
        tuple(map(tuple, cut_windows([row], 4, seeded(seed))[:, 1:].tolist())) for seed in range(60)
    }
    for windows in cuts:
        targets = [i for start, end in windows for i in row[start + 1 : end].tolist()]
        assert sorted(targets) == list(range(1, length))
        assert max(end - start for start, end in windows) <= 5
        assert len(windows) == len(cut_windows([row], 4))
    spare = -(length - 1) % 4 if length > 5 else 0
    assert len(cuts) == spare + 1


def test_a_history_of_one_item_gives_no_window():
    assert cut_windows([np.arange(1), np.arange(0)], 4).shape == (0, 3)
    assert cut_windows([np.arange(1), np.arange(0)], 4, seeded(0)).shape == (0, 3)


def test_the_newest_item_is_asked_of_the_state_that_predicts_it():
    rows = [np.array([4, 5, 6, 7]), np.array([8, 9])]
    batch = newest_item_batch(rows, CAUSAL, seeded(0))
    assert batch.tokens.tolist() == [[4, 5, 6, CLS], [PAD, PAD, 8, CLS]]
    assert batch.targets[:, -2].tolist() == [3, 5]
    assert (batch.targets != NO_TARGET).sum() == len(rows)
    batch = newest_item_batch(rows, NON_CAUSAL, seeded(0))
    assert batch.tokens.tolist() == [[CLS, 4, 5, 6, MASK, CLS], [PAD, PAD, CLS, 8, MASK, CLS]]
    assert batch.targets[:, -2].tolist() == [3, 5]


def test_a_window_that_loses_items_keeps_two_of_them():
    windows = [np.arange(10, 10 + length) for length in (2, 3, 30) * 40]
    shorter = shorten(windows, 0.5, seeded(0))
    assert min(map(len, shorter)) == 2
    assert sum(map(len, shorter)) < 0.7 * sum(map(len, windows))
    assert all(set(own) <= set(window) for own, window in zip(shorter, windows, strict=True))


def test_each_position_predicts_the_next_item_and_cls_the_last_one():
    rows = [np.array([4, 5, 6, 7]), np.array([8, 9])]
    batch = next_item_batch(rows, CAUSAL, seeded(0))
    assert batch.tokens.tolist() == [[4, 5, 6, CLS], [PAD, PAD, 8, CLS]]
    assert batch.targets.tolist() == [[1, 2, 3, 3], [NO_TARGET, NO_TARGET, 5, 5]]


def test_cloze_hides_at_least_one_item_a_row_and_predicts_only_hidden_ones():
    rows = [np.arange(4, 8), np.array([9])]
    batch = cloze_batch(rows, NON_CAUSAL, seeded(0))
    is_hidden = batch.tokens == MASK
    plain = cloze_batch(rows, NON_CAUSAL, seeded(0)).tokens
    assert (is_hidden == (batch.targets != NO_TARGET)).all()
    assert is_hidden.any(1).all()
    assert (plain[:, [0, -1]][0] == CLS).all()
    assert batch.targets[1, -2] == 9 - FIRST_ITEM


def test_a_second_view_is_a_stretch_of_the_history():
    row = np.arange(FIRST_ITEM, FIRST_ITEM + 10)
    view = second_views([row], CAUSAL, seeded(1))[0, :-1].tolist()
    assert view == list(range(view[0], view[0] + len(view)))
    assert 3 <= len(view) <= 4


def test_pretraining_lowers_the_loss_below_that_of_guessing():
    settings = replace(TINY, epochs=8, learning_rate=2e-2, contrast_weight=0.0)
    trained = pretrain(shop_histories(users=400), settings)
    assert trained.record["epochs"][-1]["validation_loss"] < np.log(30) - 0.2


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"is_causal": False},
        {"loss": "sampled"},
        {"start": "random"},
        {"contrast_weight": 0.0},
        {"precision": "bfloat16"},
        {"dropout": 0.3, "item_dropout": 0.3, "max_len": 4},
        {"validation_share": 0.0},
    ],
)
def test_the_same_seed_gives_the_same_weights_bit_for_bit(changes):
    settings = replace(TINY, **changes)
    assert_same_weights(pretrain(shop_histories(), settings), pretrain(shop_histories(), settings))


def test_dropout_keeps_the_training_loss_above_that_of_a_run_without():
    settings = replace(TINY, epochs=8, learning_rate=2e-2, contrast_weight=0.0)
    losses = [
        pretrain(shop_histories(), each).record["epochs"][-1]["train_loss"]
        for each in (settings, replace(settings, dropout=0.5))
    ]
    assert losses[1] > losses[0] + 0.02


def test_items_that_are_left_out_change_what_is_learned():
    one = pretrain(shop_histories(), TINY)
    other = pretrain(shop_histories(), replace(TINY, item_dropout=0.5))
    assert not torch.equal(one.output.weight, other.output.weight)


@pytest.mark.parametrize("is_causal", [True, False])
def test_the_newest_items_are_validated_on_as_evaluate_backbone_ranks_them(is_causal):
    histories = shop_histories()
    settings = replace(TINY, validation_share=0.0, is_causal=is_causal, epochs=1)
    trained = pretrain(histories, settings)
    asked = hold_out(histories, trained.vocabulary, "test")
    scores = by_backbone(trained.backbone, trained.output.weight, trained.output.bias)
    ranks = rank_all(asked, scores, Ranking(len(trained.vocabulary)), lambda _: None, "ranking")
    found = trained.record["epochs"][0]["validation_metrics"]
    assert found["hr@5"] == pytest.approx((ranks < 5).mean(), abs=0.01)
    assert trained.record["data"]["validation_sequences"] == len(asked.rows)


@pytest.mark.parametrize("is_causal", [True, False])
def test_no_newest_item_is_trained_on_if_they_are_validated_on(is_causal):
    histories = shop_histories()
    newest = histories.offsets[1:] - 1
    changed = replace(histories, codes=histories.codes.copy())
    changed.codes[newest] = (changed.codes[newest] + 7) % 30
    settings = replace(TINY, validation_share=0.0, is_causal=is_causal, epochs=1)
    assert_same_weights(pretrain(histories, settings), pretrain(changed, settings))


def test_another_seed_gives_other_weights():
    one = pretrain(shop_histories(), TINY)
    other = pretrain(shop_histories(), replace(TINY, seed=4))
    assert not torch.equal(one.output.weight, other.output.weight)


@pytest.mark.parametrize("changes", [{}, {"dropout": 0.3, "item_dropout": 0.3, "max_len": 4}])
def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path, changes):
    def interrupt(progress: Progress) -> None:
        if progress.note.startswith("epoch 3/4, loss"):
            raise Interrupted

    settings = replace(TINY, epochs=4, **changes)
    with pytest.raises(Interrupted):
        pretrain(shop_histories(), settings, checkpoints=tmp_path, on_progress=interrupt)
    resumed = pretrain(shop_histories(), settings, checkpoints=tmp_path, resume=True)
    whole = pretrain(shop_histories(), settings)
    assert_same_weights(resumed, whole)
    losses = [[e["validation_loss"] for e in run.record["epochs"]] for run in (resumed, whole)]
    assert losses[0] == losses[1]


def test_resuming_with_other_settings_or_data_is_refused(tmp_path):
    pretrain(shop_histories(), TINY, checkpoints=tmp_path)
    with pytest.raises(CheckpointMismatch, match=r"learning_rate 0\.003 → 0\.1"):
        pretrain(
            shop_histories(), replace(TINY, learning_rate=0.1), checkpoints=tmp_path, resume=True
        )
    with pytest.raises(CheckpointMismatch, match="data_digest"):
        pretrain(shop_histories(seed=1), TINY, checkpoints=tmp_path, resume=True)


def test_resuming_without_a_checkpoint_starts_from_the_beginning(tmp_path):
    resumed = pretrain(shop_histories(), TINY, checkpoints=tmp_path, resume=True)
    assert (tmp_path / CHECKPOINT).exists()
    assert_same_weights(resumed, pretrain(shop_histories(), TINY))


def test_training_stops_early_and_keeps_the_best_epoch():
    settings = replace(TINY, epochs=30, learning_rate=0.1, patience=1)
    record = pretrain(shop_histories(), settings).record
    losses = [epoch["validation_loss"] for epoch in record["epochs"]]
    assert len(losses) < 30
    assert record["best_epoch"] == losses.index(min(losses)) == len(losses) - 2


def test_items_of_validation_users_alone_are_not_in_the_vocabulary():
    histories = shop_histories()
    held_out = int(
        split_users(histories.users, TINY.validation_share, 0.0, TINY.seed).validation[0]
    )
    codes = histories.codes.copy()
    codes[histories.offsets[held_out]] = len(histories.items)
    changed = Histories(
        histories.users, (*histories.items, "only-theirs"), codes, histories.offsets
    )
    trained = pretrain(changed, TINY)
    assert "only-theirs" not in trained.vocabulary.items
    assert trained.record["data"]["validation_unknown_share"] > 0


def test_the_record_has_settings_data_and_speed():
    record = pretrain(shop_histories(), TINY).record
    assert record["settings"]["channels"] == 8
    assert record["data"]["data_digest"] == shop_histories().digest()
    assert record["epochs"][0]["sequences_per_second"] > 0
    assert record["loss"] == "full"


def test_events_that_are_left_out_change_nothing_that_is_learned():
    given = shop_histories()
    newest = np.concatenate([given.offsets[1:] - 1, given.offsets[1:] - 2])
    codes = given.codes.copy()
    codes[newest] = len(given.items)
    changed = Histories(given.users, (*given.items, "only-new"), codes, given.offsets)
    settings = replace(TINY, epochs=1, leave_out_last=2)
    first, second = (pretrain(histories, settings) for histories in (given, changed))
    assert_same_weights(first, second)
    assert "only-new" not in second.vocabulary.items
    without = replace(settings, leave_out_last=0)
    assert_same_weights(first, pretrain(given.without_newest(2), without))


def test_the_record_tells_what_was_left_out():
    given = shop_histories()
    record = pretrain(given, replace(TINY, epochs=1, leave_out_last=5)).record
    lengths = np.diff(given.offsets)
    assert record["settings"]["leave_out_last"] == 5
    assert record["data"]["left_out_users"] == (lengths <= 5).sum() > 0
    assert record["data"]["left_out_events"] == np.minimum(lengths, 5).sum()
    assert record["data"]["data_digest"] == given.without_newest(5).digest()


def test_histories_that_end_with_what_is_left_out_are_refused():
    with pytest.raises(SplitEmpty, match="none of the 120 users has more than the 14 newest"):
        pretrain(shop_histories(), replace(TINY, leave_out_last=14))


def test_progress_is_reported_for_every_batch():
    seen: list[Progress] = []
    pretrain(shop_histories(), replace(TINY, epochs=1), on_progress=seen.append)
    batches = [progress for progress in seen if progress.unit == "batches"]
    assert {progress.done for progress in batches} == set(range(batches[0].total + 1))


def test_a_diverging_run_names_step_and_learning_rate():
    with pytest.raises(TrainingDiverged, match=r"at step \d+ with learning rate"):
        pretrain(shop_histories(), replace(TINY, learning_rate=1e38, epochs=3))


def test_histories_without_two_items_are_refused():
    histories = Histories(
        tuple("abcd"), ("x", "y"), np.array([0, 1, 0, 1]), np.array([0, 1, 2, 3, 4])
    )
    with pytest.raises(SplitEmpty, match="each of the 4 users has one event"):
        pretrain(histories, TINY)


def test_a_minimum_count_that_no_item_reaches_is_refused():
    with pytest.raises(UnknownItems):
        pretrain(shop_histories(), replace(TINY, min_count=10_000))


def test_a_disk_that_fills_keeps_the_last_checkpoint_and_the_run_resumes_exactly(tmp_path):
    whole = pretrain(shop_histories(), TINY)
    with ExitStack() as full:

        def fill(progress: Progress) -> None:
            if progress.note.startswith("epoch 2/2, validating"):
                full.enter_context(files_of_at_most(1000))

        with pytest.raises(DiskFull, match="bytes are wanted"):
            pretrain(shop_histories(), TINY, checkpoints=tmp_path, on_progress=fill)
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT]
    resumed = pretrain(shop_histories(), TINY, checkpoints=tmp_path, resume=True)
    assert len(resumed.record["epochs"]) == len(whole.record["epochs"])
    assert_same_weights(resumed, whole)


def test_a_disk_without_room_for_the_checkpoints_is_refused_before_the_first_step(tmp_path):
    steps: list[Progress] = []
    with files_of_at_most(1000), pytest.raises(DiskFull, match="a file may have 1,000"):
        pretrain(shop_histories(), TINY, checkpoints=tmp_path, on_progress=steps.append)
    assert all(progress.unit != "batches" for progress in steps)
    assert [*tmp_path.iterdir()] == []


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    write_tensors(tmp_path / CHECKPOINT, {"a": torch.zeros(1)})
    with pytest.raises(TensorFileInvalid, match="not the checkpoint of a pretraining"):
        pretrain(shop_histories(), TINY, checkpoints=tmp_path, resume=True)
