"""Floor 4: the step, the loop, checkpoints, run directories and reports. An experiment calls `train.main(EXPERIMENT)`."""

from research.core.interrupts import ending_at_once

with ending_at_once():  # these import JAX, which takes most of a second
    from research.train.command import fit, main
    from research.train.config import Config, Experiment
    from research.train.loop import Result
    from research.train.optim import OptimizerConfig, ScheduleConfig

__all__ = ["Config", "Experiment", "OptimizerConfig", "Result", "ScheduleConfig", "fit", "main"]
