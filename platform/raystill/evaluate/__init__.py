"""Stage evaluate: how much of the gap between the untrained student and the teacher was closed."""
