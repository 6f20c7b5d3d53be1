"""Reports as objects: shown in a notebook, saved as a page."""

import re

import pytest

import peterrec
from peterrec.service.errors import OutputExists


def test_the_data_are_described_before_a_training(shop, tmp_path):
    report = peterrec.data_info(
        shop.tables["histories"],
        order_column="position",
        labels=shop.tables["users"],
        label_column="gender",
    )
    assert report.document["users"] == 120
    assert report.document["answers"]["values"] == 2
    path = report.save(tmp_path / "data.html")
    assert path.read_text(encoding="utf-8") == report.html
    with pytest.raises(OutputExists):
        report.save(path)


def test_lists_are_described_too(shop):
    report = peterrec.data_info(shop.histories, labels=shop.spends, kind="value")
    assert report.document["events"] == sum(map(len, shop.histories))
    assert report.document["answers"]["users"] == 120


def test_a_task_is_reported_with_and_without_data(tasks, shop):
    task = tasks["classification"]
    recorded = peterrec.report(task)
    measured = peterrec.report(
        task,
        shop.path("histories"),
        order_column="position",
        labels=shop.path("users"),
        label_column="gender",
    )
    assert "classification" in recorded.html
    assert len(measured.html) > len(recorded.html)
    assert "12 users" in measured.html


def test_a_backbone_is_reported(backbone, shop):
    assert backbone.fingerprint[:12] in peterrec.report(backbone).html
    page = peterrec.report(backbone, shop.tables["histories"], order_column="position").html
    assert "popularity" in page


def test_a_report_is_shown_in_a_frame_of_its_own(tasks):
    shown = peterrec.report(tasks["value"])._repr_html_()
    assert shown.startswith("<iframe sandbox")
    assert re.search(r"<script|<style", shown) is None
