"""Sources of examples that need no network: sets that come in a library's package, and sets that are made here by rule."""
