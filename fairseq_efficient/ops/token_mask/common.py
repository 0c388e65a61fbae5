"""What the naive and the fast form of masked attention share."""

RULES = ("renorm", "postmult")

# A skipped key may score higher than all that are kept; its exponential is needed for its mask's gradient only, and
# more than this above the largest kept score (above the normaliser of soft masks) is not told apart.
MAX_EXPONENT = 10.0
