"""Sweeps: many runs that share what is compiled, planned, run, and laid before the eye (docs/sweeps.md)."""

from research.sweep.sweep import Sweep, main

__all__ = ["Sweep", "main"]
