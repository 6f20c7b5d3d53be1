"""Child processes to which the permissions of files apply, also if the tests run as root."""

import ctypes
import os

PR_CAPBSET_DROP = 24
POWERS_OVER_FILES = range(4)
"""CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH and CAP_FOWNER of linux/capability.h."""


def obey_permissions() -> None:
    """Take root's powers over files away from this process; for ``preexec_fn``."""
    if os.geteuid() != 0:
        return
    system = ctypes.CDLL(None, use_errno=True)
    for power in POWERS_OVER_FILES:
        if system.prctl(PR_CAPBSET_DROP, power, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "root's powers can't be dropped")
