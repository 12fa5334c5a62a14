"""Search for hyper-parameters on the validation split, with the same budget for every model."""
