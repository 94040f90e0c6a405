"""The portable passes. Add one in five steps.

1. Write a module here (or in a package of your own) with a subclass of ``qcc.passmgr.base.Pass``.
2. Give it ``name``, the stages ``accepts`` and ``yields``, and the facts it ``needs`` and ``gives``.
3. Make its options fields, with defaults and bounds; write ``run`` to return a new graph.
4. Register it under ``[project.entry-points."qcc.passes"]``.
5. Add a golden file: ``# run: your-pass``, a graph, ``# gives``, and the graph that must come out.
"""
