"""A complete qcc target: ``target`` writes an integer graph as JSON, ``backend`` runs that JSON with numpy."""
