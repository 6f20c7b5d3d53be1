"""A bundle records how its answers were distributed in its training."""

from dataclasses import replace

import numpy as np
import pytest

from peterrec.model.files.backbone_folder import LoadedBackbone
from peterrec.model.training.finetune.finetune import FinetunedTask, FinetuneSettings, finetune
from peterrec.service.jobs.packing import pack_task, unpack_task
from peterrec.service.jobs.prior import prior_of
from peterrec.service.protocol.answer_prior import MOST_OUTPUTS, AnswerPrior
from tests.model.small_shop import TINY, groups, shop_histories, small_backbone


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedBackbone:
    return small_backbone(tmp_path_factory.mktemp("backbone"), replace(TINY, epochs=1))


@pytest.fixture(scope="module")
def task(loaded: LoadedBackbone) -> FinetunedTask:
    settings = FinetuneSettings(kind="classification", parts="blocks", bottleneck=4, epochs=1)
    return finetune(loaded, shop_histories(), groups(), settings)


def test_the_prior_counts_what_the_packed_bundle_answers_to_test_users(loaded, task):
    unpacked = unpack_task(pack_task(task, loaded, "groups"), loaded)
    prior = unpacked.bundle.manifest.prior
    rows = [row for row in (task.examples.rows[u] for u in task.split.test) if len(row)]
    probabilities = (unpacked.model.logits(rows) / task.temperature).softmax(-1).detach().numpy()
    answered = np.bincount(probabilities.argmax(1), minlength=len(task.outputs))
    assert prior is not None
    assert prior.users == len(rows)
    assert prior.outputs == tuple(answered)
    places = np.searchsorted(prior.bounds, probabilities.max(1), side="right")
    assert prior.scores == tuple(np.bincount(places, minlength=len(prior.bounds) + 1))


def test_no_score_of_the_training_lies_on_a_bound(loaded, task):
    """So the rounding of another forward moves none to another group."""
    prior = prior_of(task, loaded)
    assert prior is not None
    rows = [task.examples.rows[user] for user in task.split.test]
    model = unpack_task(pack_task(task, loaded, "groups"), loaded).model
    scores = (model.logits(rows) / task.temperature).softmax(-1).detach().numpy().max(1)
    gaps = np.abs(scores[:, None] - np.array(prior.bounds)[None, :])
    assert gaps.min() > 0


def test_many_outputs_are_joined_into_groups_that_count_the_same_users(loaded, task):
    manifest = unpack_task(pack_task(task, loaded, "groups"), loaded).bundle.manifest
    assert manifest.prior is not None
    counts = tuple(range(100))
    wide = manifest.model_copy(
        update={"prior": manifest.prior.model_copy(update={"outputs": counts})}
    )
    prior = AnswerPrior.unpacked(AnswerPrior.packed(wide))
    assert prior is not None
    assert len(prior.outputs) == MOST_OUTPUTS
    assert sum(prior.outputs) == sum(counts)
    assert prior.group_of(99) == 0
    assert prior.outputs[prior.group_of(0)] == sum(range(100 - MOST_OUTPUTS + 1))
