"""The systemd unit of `deploy/` says what the server needs, and systemd understands it."""

import re
import shutil
import subprocess
from configparser import ConfigParser
from pathlib import Path

import pytest

from peterrec.service.processes.supervisor import DEVICE_STOP_TIMEOUT_S, WORKER_STOP_MARGIN_S
from peterrec.service.settings import PREFIX, Settings

UNIT = Path(__file__).parents[2] / "deploy" / "peterrec.service"


def section(name: str) -> dict[str, str]:
    parser = ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str  # type: ignore[method-assign, assignment]  # keeps capitals
    parser.read_string(UNIT.read_text(encoding="utf-8"))
    return dict(parser[name])


SERVICE = section("Service")


def test_every_variable_of_the_unit_is_a_setting_and_its_data_is_the_state_directory():
    given = dict(re.findall(r"(\w+)=(\S+)", SERVICE["Environment"]))
    assert {name.removeprefix(PREFIX).lower() for name in given} <= set(Settings.model_fields)
    assert given["PETERREC_DATA_DIR"] == f"/var/lib/{SERVICE['StateDirectory']}"


def test_systemd_waits_for_the_notification_and_for_the_drain():
    assert SERVICE["Type"] == "notify"
    fields = Settings.model_fields
    drain = fields["drain_delay_s"].default + fields["drain_timeout_s"].default
    assert float(SERVICE["TimeoutStopSec"]) > drain + WORKER_STOP_MARGIN_S + DEVICE_STOP_TIMEOUT_S


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_finds_no_fault_in_the_unit_and_calls_its_exposure_low(tmp_path):
    text = UNIT.read_text(encoding="utf-8").replace("/opt/peterrec/bin/peterrec", "/bin/true")
    copy = tmp_path / "peterrec.service"
    copy.write_text(text, encoding="utf-8")
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "peterrec.service" not in verified.stderr
    judged = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=40", str(copy)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert judged.returncode == 0, judged.stdout[-600:]
