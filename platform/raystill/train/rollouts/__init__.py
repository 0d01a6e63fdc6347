"""Completions that the student makes while it learns, with the weights it has."""
