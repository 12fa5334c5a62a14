"""Many models with many seeds on one data set, resumable, and the table they make."""
