"""The names of the packages. Imports nothing: setup.py reads it too."""

SYSTEMS = ("deep_pyramidion", "dynamic_pooling", "skimming", "par_search", "adaptive_span")
PACKAGES = ("fairseq_efficient", *SYSTEMS, "efficient_systems")
