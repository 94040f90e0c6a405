"""The targets: what each device can do, and how integer graphs become files that it runs."""
