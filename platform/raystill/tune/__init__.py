"""Sweeps: many short trainings from one teacher store, and which of them was best."""
