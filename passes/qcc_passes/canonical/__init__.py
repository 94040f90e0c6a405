"""The rewriting rules behind ``canonicalize``: each a small function that preserves the float function.

``engine`` says what a rule is and replays graphs through rules; the other modules hold the rules,
by theme, and end in a ``RULES`` tuple in order of precedence.
"""
