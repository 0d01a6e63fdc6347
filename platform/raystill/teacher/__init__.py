"""Stages generate and score: a teacher's outputs and distributions, written to the teacher store."""
