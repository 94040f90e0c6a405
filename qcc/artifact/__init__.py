"""Artifacts: the manifest, how they are written, read and checked, and their border."""
