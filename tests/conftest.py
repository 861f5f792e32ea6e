"""Threads that wait sleep at once (see `ausm/__init__.py`): test runs share their machine, often with themselves."""

import os

if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ["OMP_WAIT_POLICY"] = "passive"
