"""Measurements of speed and memory behind `ausm bench`; each module also runs as `python -m bench.NAME`."""
