"""Floor 2: the transformer as pure functions of parameters and a frozen config."""
