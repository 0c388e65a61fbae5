"""Operators: each has a naive reference and a fast form of the same signature, and needs no fairseq."""
