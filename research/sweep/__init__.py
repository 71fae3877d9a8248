"""Sweeps: many runs that share what is compiled, planned, run, and laid before the eye. A sweep's script calls `sweep.main(SWEEP)`."""

from research.sweep.command import script as main
from research.sweep.sweep import Results, Sweep

__all__ = ["Results", "Sweep", "main"]
