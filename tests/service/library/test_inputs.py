"""One data set in any form gives one vocabulary, one set of histories and one set of labels."""

from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import peterrec
from peterrec.model.errors import DataError
from peterrec.service.errors import ArgumentInvalid
from tests.service.library.conftest import FINETUNE, PRETRAIN

FORMS = {
    "path": lambda table, path: path,
    "text": lambda table, path: str(path),
    "arrow": lambda table, path: table,
    "batches": lambda table, path: pa.RecordBatchReader.from_batches(
        table.schema, table.to_batches()
    ),
    "pandas": lambda table, path: table.to_pandas(),
    "pandas with Arrow's types": lambda table, path: table.to_pandas(
        types_mapper=pd.ArrowDtype, split_blocks=True
    ),
    "polars": lambda table, path: pl.from_arrow(table),
    "duckdb": lambda table, path: duckdb.from_arrow(table),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_table_in_any_form_gives_the_same_backbone(form, shop, backbone):
    data = FORMS[form](shop.tables["histories"], shop.path("histories"))
    twin = peterrec.pretrain(data, order_column="position", **PRETRAIN)
    assert twin.fingerprint == backbone.fingerprint
    assert twin.record["data"] == backbone.record["data"]


def as_lists(shop):
    return shop.histories, shop.genders


def as_arrays(shop):
    rows = np.empty(len(shop.histories), dtype=object)
    rows[:] = [np.array(row) for row in shop.histories]
    return rows, np.array(shop.genders)


def as_series(shop):
    return pd.Series(shop.histories), pd.Series(shop.genders)


def as_polars(shop):
    return pl.Series(shop.histories), pl.Series(shop.genders)


def as_dicts(shop):
    numbers = range(len(shop.users))
    return (
        dict(zip(numbers, shop.histories, strict=True)),
        dict(zip(numbers, shop.genders, strict=True)),
    )


def as_frames(shop):
    """Tables in which the users are called as the users of a list are: 0, 1, 2 …"""
    number = {user: at for at, user in enumerate(shop.users)}
    events = shop.tables["histories"].to_pandas()
    labels = shop.tables["users"].to_pandas()
    return (
        events.assign(user_id=events["user_id"].map(number)),
        labels.assign(user_id=labels["user_id"].map(number)),
    )


@pytest.mark.parametrize("form", [as_arrays, as_series, as_polars, as_dicts, as_frames])
def test_lists_in_any_form_give_the_same_task(form, shop, backbone):
    given = {"kind": "classification", "label_column": "gender", **FINETUNE}
    lists, labels = as_lists(shop)
    one = peterrec.finetune(backbone, lists, labels=labels, **given)
    histories, labels = form(shop)
    order: dict[str, Any] = {"order_column": "position"} if form is as_frames else {}
    twin = peterrec.finetune(backbone, histories, labels=labels, **order, **given)
    digests = ("histories_digest", "labels_digest")
    assert [twin.record["data"][d] for d in digests] == [one.record["data"][d] for d in digests]
    assert twin.metrics == one.metrics


def test_a_user_without_events_keeps_the_place_of_the_others(shop, backbone):
    histories = [[], *shop.histories]
    task = peterrec.finetune(
        backbone, histories, kind="classification", labels=["x", *shop.genders], **FINETUNE
    )
    assert task.outputs == ("female", "male")
    assert task.record["data"]["without_history"] == 1


def test_an_integer_means_its_decimal_text():
    histories: list[list[str | int]] = [[3, 1, 2], [2, 3, 1, 10**20], ["1", 2, "x"]] * 20
    backbone = peterrec.pretrain(histories, **PRETRAIN)
    texts = [[str(item) for item in row] for row in histories]
    assert backbone.fingerprint == peterrec.pretrain(texts, **PRETRAIN).fingerprint
    assert set(backbone.items) == {"1", "2", "3", "x", str(10**20)}


def test_values_and_tags_and_targets_are_taken_from_lists(shop, backbone):
    kinds = {
        "value": {"labels": shop.spends},
        "tags": {"labels": shop.tags},
        "ranking": {"targets": shop.targets},
    }
    tasks = {
        kind: peterrec.finetune(backbone, shop.histories, kind=kind, **given, **FINETUNE)
        for kind, given in kinds.items()
    }
    assert tasks["value"].outputs == ()
    assert set(tasks["tags"].outputs) == {tag for own in shop.tags for tag in own}
    assert set(tasks["ranking"].outputs) <= {item for own in shop.targets for item in own}
    assert tasks["ranking"].record["data"]["train_users"] > 50


def test_a_user_without_tags_is_a_user(shop, backbone):
    tags = [["a", "b"], ["a"], []] * (len(shop.histories) // 3)
    histories = shop.histories[: len(tags)]
    task = peterrec.finetune(backbone, histories, kind="tags", labels=tags, **FINETUNE)
    data = task.record["data"]
    assert data["train_users"] + data["validation_users"] + data["test_users"] == len(tags)


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (["x", "y"], "2 answers do not fit 3 histories"),
        ("x.csv", r"x\.csv does not exist"),
        (5, "int '5'"),
    ],
)
def test_labels_that_do_not_fit_the_histories_are_refused(labels, reason, backbone):
    with pytest.raises((ArgumentInvalid, DataError), match=reason):
        peterrec.finetune(
            backbone,
            [[backbone.items[0]]] * 3,
            kind="classification",
            labels=labels,
            label_column="y",
        )


def test_a_list_of_labels_needs_a_list_of_histories(shop, backbone):
    with pytest.raises(ArgumentInvalid, match="need histories in a list"):
        peterrec.finetune(
            backbone, shop.path("histories"), kind="classification", labels=shop.genders
        )


@pytest.mark.parametrize(
    "wrong", [["a", "b"], [["a", 1.5, None], ["b"]], 5, [[["a"]]], [{"a", "b"}]]
)
def test_histories_of_another_shape_are_refused_with_a_code(wrong):
    with pytest.raises((ArgumentInvalid, DataError)) as refused:
        peterrec.pretrain(wrong, **PRETRAIN)
    assert refused.value.code


def test_errors_name_arguments_instead_of_options(shop, backbone):
    with pytest.raises(peterrec.PeterRecError) as refused:
        peterrec.finetune(backbone, shop.path("histories"), kind="classification")
    assert "--" not in str(refused.value)
    assert "`label_column`" in str(refused.value)


def test_a_refused_column_names_the_argument(shop):
    with pytest.raises(DataError) as refused:
        peterrec.pretrain(shop.tables["histories"], user_column="nobody")
    assert "nobody" in str(refused.value)
    assert "--" not in str(refused.value)


@pytest.mark.parametrize(
    ("wrong", "reason", "advice"),
    [
        ({"user_id": ["u", "u"], "item_id": ["a", "b"]}, "names of columns", "pandas"),
        (pl.LazyFrame({"user_id": ["u"], "item_id": ["a"]}), "no rows yet", "collect"),
        (None, "is expected", "path"),
    ],
)
def test_what_looks_like_a_table_but_is_none_is_refused(wrong, reason, advice):
    with pytest.raises(ArgumentInvalid, match=reason) as refused:
        peterrec.pretrain(wrong, **PRETRAIN)
    assert advice in refused.value.hint


def test_answers_that_a_kind_does_not_learn_from_are_told_of(shop, backbone, capsys):
    given = {"labels": shop.genders, "targets": shop.targets}
    peterrec.finetune(backbone, shop.histories, kind="classification", **given, **FINETUNE)
    assert "a classification task does not learn from targets" in capsys.readouterr().err
