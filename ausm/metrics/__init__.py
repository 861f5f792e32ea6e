"""Figures of merit, each equal to the official tool of its benchmark (tests/metrics)."""
