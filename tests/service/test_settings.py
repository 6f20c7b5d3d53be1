"""Settings: read once, every bad value listed, documented as they are."""

from pathlib import Path

import pytest

from peterrec.service.errors import SettingsInvalid
from peterrec.service.settings import (
    Settings,
    read_settings,
    render_settings,
    unknown_settings,
)
from peterrec.service.system.addresses import is_loopback

DOCS = Path(__file__).parents[2] / "docs" / "settings.md"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"PETERREC_{name.upper()}", raising=False)
    monkeypatch.setenv("PETERREC_BACKBONE_DIR", str(tmp_path))


def test_the_environment_is_read(monkeypatch):
    monkeypatch.setenv("PETERREC_PORT", "8123")
    monkeypatch.setenv("PETERREC_REDIS_URL", "redis://example:6379/0")
    settings = read_settings()
    assert (settings.port, settings.redis_url) == (8123, "redis://example:6379/0")


def test_an_option_wins_over_the_environment_and_none_leaves_it(monkeypatch):
    monkeypatch.setenv("PETERREC_PORT", "8123")
    monkeypatch.setenv("PETERREC_HOST", "127.0.0.2")
    settings = read_settings(port=9000, host=None)
    assert (settings.port, settings.host) == (9000, "127.0.0.2")


def test_an_empty_variable_counts_as_unset(monkeypatch):
    monkeypatch.setenv("PETERREC_REDIS_URL", "")
    assert read_settings().redis_url is None


def test_a_variable_that_is_no_setting_is_told_of_with_the_one_that_may_be_meant(monkeypatch):
    for name in ("PETERREC_URL", "PETERREC_API_KEY", "PETERREC_TRACEBACK", "PETERREC_PORT"):
        monkeypatch.setenv(name, "8000")
    assert not list(unknown_settings())
    monkeypatch.setenv("PETERREC_QUEUE_ROWS", "5")
    (told,) = unknown_settings()
    assert told == (
        "PETERREC_QUEUE_ROWS is no setting and has no effect. Did you mean PETERREC_MAX_QUEUE_ROWS?"
    )


def test_every_bad_value_is_listed_at_once(monkeypatch):
    monkeypatch.setenv("PETERREC_PORT", "99999")
    monkeypatch.setenv("PETERREC_DEVICE", "tpu")
    monkeypatch.delenv("PETERREC_BACKBONE_DIR")
    with pytest.raises(SettingsInvalid) as refused:
        read_settings(max_batch_rows=0)
    for name in ("PORT", "DEVICE", "BACKBONE_DIR", "MAX_BATCH_ROWS"):
        assert f"PETERREC_{name}" in refused.value.message


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "example.org", "::"])
def test_authentication_can_not_be_off_on_a_reachable_host(host):
    with pytest.raises(SettingsInvalid, match="auth is off but host"):
        read_settings(auth="off", host=host)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "localhost", "::1"])
def test_authentication_can_be_off_on_loopback(host):
    assert is_loopback(host)
    assert read_settings(auth="off", host=host).auth == "off"


def test_children_read_exactly_the_settings_of_their_supervisor(monkeypatch, tmp_path):
    settings = read_settings(port=0, redis_url="unix:///x.sock", data_dir=tmp_path, threads=3)
    monkeypatch.setenv("PETERREC_PORT", "1")
    for name, value in settings.to_environment().items():
        if name.startswith("PETERREC_"):
            monkeypatch.setenv(name, value)
    assert read_settings() == settings


def test_a_setting_that_is_unset_stays_unset_for_children(monkeypatch):
    settings = read_settings()
    monkeypatch.setenv("PETERREC_REDIS_URL", "redis://stale")
    assert "PETERREC_REDIS_URL" not in settings.to_environment()


def test_workers_follow_the_cores_unless_set(monkeypatch):
    monkeypatch.setattr("peterrec.service.settings.core_count", lambda: 8)
    assert read_settings().worker_count == 4
    assert read_settings(workers=7).worker_count == 7
    monkeypatch.setattr("peterrec.service.settings.core_count", lambda: 2)
    assert read_settings().worker_count == 1


def test_the_documentation_is_what_the_settings_say():
    assert DOCS.read_text(encoding="utf-8") == render_settings(), (
        "run: python -m peterrec.service.settings > docs/settings.md"
    )


def test_all_settings_that_contradict_each_other_are_listed_at_once(monkeypatch, tmp_path):
    with pytest.raises(SettingsInvalid) as refused:
        read_settings(
            backbone_dir=tmp_path,
            auth="off",
            host="0.0.0.0",
            port=8000,
            metrics_port=8000,
            request_timeout_ms=60_000,
            drain_timeout_s=30,
        )
    for text in ("auth is off", "port 8000", "60000 ms", "DRAIN_TIMEOUT_S"):
        assert text in refused.value.message
