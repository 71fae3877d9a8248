"""Floor 3: a task is inputs, a loss and metrics, as pure functions."""
