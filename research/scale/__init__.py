"""Scale: what a run would need and reach on hardware that is not there."""
