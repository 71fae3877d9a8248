"""Floor 5: every claim of speed, measured beside a peer or a physical limit in the same run."""
