"""``python -m adaptive_span`` prints the folder to pass as --user-dir."""

from pathlib import Path

print(Path(__file__).resolve().parent)
