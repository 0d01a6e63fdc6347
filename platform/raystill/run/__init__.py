"""The run directory: paths, atomic publishing, manifests, locks, stage execution, metrics and progress."""
