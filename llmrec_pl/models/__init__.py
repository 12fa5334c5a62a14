"""The recommenders, one class a file; a config names them by their full class path."""
