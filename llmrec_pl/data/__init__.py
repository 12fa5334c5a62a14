"""Data sets, features, augmentations, samplers and loaders."""
