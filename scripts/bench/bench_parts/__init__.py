"""Models, rows and checks of the benches, a folder for each; what they share is `fairseq_efficient.bench`."""
