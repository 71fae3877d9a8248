"""What a run learns from: sources of text, tokenisers, token streams on disk, and batches as a function of the step."""
