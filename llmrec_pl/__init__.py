"""LLMRec and its baselines as Lightning modules, under one leak-free evaluation protocol."""

__version__ = "0.1.0"
