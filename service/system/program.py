"""How ``peterrec`` starts child processes that import nothing from the current folder.

A user's folder may have a ``model.py``, a ``service/`` or a ``random.py``. Python looks in the
current folder first when it is started with ``-m`` or ``-c``, so every child needs a flag against
that.
"""

import os
import sys


def peterrec(*arguments: str) -> list[str]:
    """Return the command line that runs ``peterrec`` with these arguments in a child process."""
    return [sys.executable, "-P", "-m", "peterrec", *arguments]


def import_nothing_from_current_folder() -> None:
    """Keep the current folder off the import path of all child processes.

    ``multiprocessing`` starts its processes by ``python -c``, without the flag ``-P`` if the parent
    is a console script.
    """
    os.environ["PYTHONSAFEPATH"] = "1"
