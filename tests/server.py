"""Imported by the server that tests fork their commands from (``tests/util.py``), after fairseq's tools."""

from tests.quick import read_defaults

read_defaults()
