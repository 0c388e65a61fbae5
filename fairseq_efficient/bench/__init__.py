"""Measuring: paired timing, peak memory, analytic FLOPs, the machine, and rows as table, JSON and picture.

Nothing here knows a model: ``scripts/bench/<system>.py`` names the variants. Importing this package imports no torch.
"""
