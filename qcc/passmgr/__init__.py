"""Passes, targets, the facts that they exchange, and the pipeline that runs them."""
