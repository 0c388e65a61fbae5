"""What the systems share; see docs/architecture.md."""
