"""Test runs share their machine, often with themselves: threads that wait sleep at once (see `ausm/__init__.py`), and
a property is not false because one example of it took long."""

import os

from hypothesis import settings

if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ["OMP_WAIT_POLICY"] = "passive"

settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")
