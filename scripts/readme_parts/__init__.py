"""The tables of README.md and docs/results/README.md, made from docs/results/*.json by scripts/update_readme.py."""
