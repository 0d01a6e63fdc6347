"""Stage export: the student as files that other programs load."""
