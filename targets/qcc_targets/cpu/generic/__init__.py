"""Kernel templates for every integer operation, on any instruction set, with any strides."""
