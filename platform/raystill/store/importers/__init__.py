"""Answers from elsewhere become rows of a store. `load_answers` writes; one module per format reads."""
