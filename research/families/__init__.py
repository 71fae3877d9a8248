"""Floor 2: model families as data: presets with their published numbers."""
