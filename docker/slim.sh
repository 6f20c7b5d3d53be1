#!/bin/sh
# slim.sh ENVIRONMENT: remove from an installed environment what no command of ours reads (tests, C++
# headers, tools, a server of tables), and compile the modules that our own import, and no others.
set -eu
environment=$1
cd "$environment"/lib/python3.*/site-packages
find . -depth -type d \( -name tests -o -name test \) -exec rm -r {} +
rm -rf torch/include torch/share pyarrow/include pyarrow/src
rm -f pyarrow/libarrow_flight* pyarrow/_flight*
find torch/bin -type f -not -name torch_shm_manager -delete # torch does not start without that one
cd /
env -u PYTHONDONTWRITEBYTECODE "$environment/bin/python" - <<'PYTHON'
"""Import every module of ours, so that Python keeps the bytecode of all that they import."""
import importlib
import pkgutil

import torch._dynamo  # torch imports it late

import peterrec

for module in pkgutil.walk_packages(peterrec.__path__, "peterrec."):
    if not module.name.endswith("__main__"):
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            if error.name not in {"triton", "ray"}:  # kernels of a GPU; what the image has no use for
                raise
PYTHON
