"""One module for each system: ``add_arguments(parser)`` and ``build(args) -> Page``."""
