"""A reader adds to the user vector what a task's queries find in the history's items."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from peterrec.model.network.backbone import new_patch
from peterrec.model.network.collate import frame_histories
from peterrec.model.spec import BackboneSpec, HeadSpec, PatchGeometry
from peterrec.model.training.finetune.forward import user_vectors
from tests.model.random_tasks import random_backbone, random_history, random_task

SPEC = BackboneSpec(item_count=40, channels=12, dilations=(1, 4), max_len=20)
READER = PatchGeometry("serial2", 5, (), queries=3)
HEAD = HeadSpec("value", 1)


def reader_alone(spec=SPEC, seed=1):
    return random_task(random_backbone(spec), READER, HEAD, seed)


def plain_change(task, history):
    """The formula of ``model/network/history_reader.py``, item by item."""
    eps, patch = task.backbone.spec.layer_norm_eps, task.patch

    def normal(x):
        return (x - x.mean()) / math.sqrt(x.var(unbiased=False) + eps)

    items = [normal(task.backbone.embedding.weight[token]) for token in history]
    pooled = []
    for k in range(READER.queries):
        scores = [math.exp(item @ patch.query[:, k]) for item in items]
        mean = sum(score / sum(scores) * item for score, item in zip(scores, items, strict=True))
        pooled.append(normal(mean))
    narrow = torch.cat(pooled) @ patch.read_down + patch.read_down_bias
    return functional.gelu(narrow, approximate="tanh") @ patch.read_up + patch.read_up_bias


def test_the_change_of_the_user_vector_is_that_of_the_formula():
    task = reader_alone()
    history = random_history(SPEC, 9, seed=2)
    plain = task.backbone.user_vectors(frame_histories([history], SPEC))[0]
    expected = plain + plain_change(task, history)
    torch.testing.assert_close(task.user_vector(history), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("padding", ["exact", "embedded"])
@pytest.mark.parametrize("is_causal", [True, False])
def test_padding_and_cls_are_not_read(padding, is_causal):
    spec = replace(SPEC, padding=padding, is_causal=is_causal)
    task = reader_alone(spec)
    rows = [random_history(spec, length, seed=length) for length in (3, 17)]
    plain = task.backbone.user_vectors(frame_histories(rows, spec))
    found = task.backbone.user_vectors(frame_histories(rows, spec), task.patch)
    expected = torch.stack([plain_change(task, row) for row in rows])
    torch.testing.assert_close(found - plain, expected, rtol=1e-3, atol=1e-4)


def test_the_order_of_the_items_is_not_read():
    task = reader_alone()
    history = random_history(SPEC, 9, seed=3)
    forwards, backwards = (frame_histories([row], SPEC) for row in (history, history[::-1]))
    reader = task.patch.reader
    torch.testing.assert_close(
        task.backbone.read_items(forwards, reader), task.backbone.read_items(backwards, reader)
    )


def test_an_empty_history_reads_as_nothing_pooled():
    task = reader_alone()
    change = task.backbone.read_items(frame_histories([[]], SPEC), task.patch.reader)[0]
    bias = functional.gelu(task.patch.read_down_bias, approximate="tanh")
    torch.testing.assert_close(change, bias @ task.patch.read_up + task.patch.read_up_bias)


def test_an_untrained_reader_changes_nothing():
    backbone = random_backbone(SPEC)
    patch = new_patch(backbone, replace(READER, blocks=(1,))).weights()
    tokens = frame_histories([random_history(SPEC, 9, seed=4)], SPEC)
    assert torch.equal(backbone.user_vectors(tokens, patch), backbone.user_vectors(tokens))


def test_training_through_the_cone_reads_the_same():
    task = random_task(random_backbone(SPEC), replace(READER, blocks=(0, 1)), HEAD, seed=5)
    rows = [random_history(SPEC, length, seed=length) for length in (0, 4, 30)]
    tokens = frame_histories(rows, SPEC)
    expected = task.backbone.user_vectors(tokens, task.patch)
    torch.testing.assert_close(user_vectors(task.backbone, tokens, task.patch), expected)
