"""Experiments: one run or one sweep a file. Run one as `python experiments/NAME.py` or `research train NAME`."""
