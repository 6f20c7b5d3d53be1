"""What a process shows of its progress."""

import os
import subprocess
import sys
import time
from pathlib import Path

from peterrec.service.system.pulse import Pulse
from tests.waiting import eventually

EPOCH = 7


def test_another_process_reads_the_progress_of_one_that_was_killed(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from peterrec.service.system.pulse import Pulse\n"
        "pulse = Pulse.at(Path(sys.argv[1])); pulse.begin(); pulse.end_start(7)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    reader, before = Pulse.at(tmp_path / "pulse"), time.monotonic()
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "pulse")])
    child.wait()
    assert (reader.pid, reader.is_in_long_step) == (child.pid, False)
    assert before < reader.progress_at < time.monotonic()
    assert reader.lives(EPOCH, since=before)
    assert not reader.lives(EPOCH, since=time.monotonic())


def test_a_process_that_takes_the_file_over_has_no_epoch_until_its_start_is_over(
    tmp_path: Path,
) -> None:
    pulse, reader = Pulse.at(tmp_path / "pulse"), Pulse.at(tmp_path / "pulse")
    pulse.begin()
    assert (reader.pid, reader.is_in_long_step) == (os.getpid(), True)
    assert not reader.lives(EPOCH, since=0.0)
    pulse.end_start(EPOCH)
    assert not reader.is_in_long_step
    assert reader.lives(EPOCH, since=0.0)
    pulse.begin()
    assert not reader.lives(EPOCH, since=0.0)


def test_a_process_lives_while_its_main_thread_makes_no_progress() -> None:
    pulse = Pulse()
    pulse.begin()
    pulse.end_start(EPOCH)
    with pulse.living():
        now = time.monotonic()
        eventually(lambda: pulse.lives(EPOCH, since=now))
    assert pulse.progress_at < now
    assert pulse.is_stuck(EPOCH, since=now)
    pulse.beat()
    assert not pulse.is_stuck(EPOCH, since=now)
