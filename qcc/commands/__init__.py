"""The commands of ``qcc``, one module each.

What is slow to import is imported where a command needs it, so that ``--help`` is quick, and
``doctor`` can report an installation in which something does not import.
"""
