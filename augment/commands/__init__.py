"""One module a command: `add_arguments(parser)`, `run(args)`, and its help as docstring."""
