"""Measurements of speed and memory behind `ausm bench`; each module also runs as `python -m bench.NAME`."""

import ausm  # noqa: F401  (says how threads wait, which must come before PyTorch is loaded)
