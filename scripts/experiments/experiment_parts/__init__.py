"""What the quality runs are made of: shared modules here, a folder for what is one run's own."""
