"""The HTML report of a run: one self-contained file, made from whatever is complete."""
