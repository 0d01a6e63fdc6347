"""Stage export: the student as files that other programs load, with proof that they do."""
