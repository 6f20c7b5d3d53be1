"""How callers use the library, for the type checker: `make check` reads this file.

A call that must be refused carries an ignored error, which is itself an error if it is accepted.
"""

from pathlib import Path
from typing import assert_type

import pyarrow as pa

import peterrec
from peterrec_client import Prediction, Pushed


def uses(table: pa.Table, path: Path) -> None:
    """Every function of the library, once."""
    backbone = peterrec.pretrain(table, order_column="at", epochs=2, dilations=[1, 4], seed=1)
    assert_type(backbone, peterrec.Backbone)
    assert_type(peterrec.load_backbone(backbone.save(path)).fingerprint, str)
    task = peterrec.finetune(
        backbone,
        [["a", "b"], [1, 2]],
        kind="classification",
        labels=["x", "y"],
        lr=0.1,
        blocks="top:1",
    )
    assert_type(task, peterrec.Task)
    assert_type(task.predict({"u1": ["a"]}, top_k=3), list[Prediction])
    assert_type(task.evaluate(path, labels=path, label_column="y")["accuracy"], float)
    assert_type(task.push("gender", alias="next"), Pushed)
    assert_type(peterrec.load_bundle(task.save(path), str(path)), peterrec.Task)
    assert_type(peterrec.report(task, table, labels=table, label_column="y"), peterrec.Report)
    assert_type(peterrec.data_info(path, order_column="at").html, str)
    many = peterrec.finetune_many(backbone, table, {"a": {"kind": "value", "labels": {"u1": 1.5}}})
    assert_type(many, dict[str, peterrec.Task])
    assert_type(peterrec.Recommender(backbone, top_k=3, lr=0.1).fit([["a"]]).top_k, int)


def misuses(task: peterrec.Task) -> None:
    """Calls that a type checker refuses."""
    peterrec.pretrain("file.csv", epochs="many")  # type: ignore[arg-type]
    peterrec.pretrain("file.csv", ephocs=2)  # type: ignore[call-arg]
    peterrec.finetune("backbone", 5, kind="value")  # type: ignore[arg-type]
    task.predict([["a"]], unknown_items="ignore")  # type: ignore[arg-type]
