"""Purestep: a run is a pure function. See docs/design.md."""
