"""Stages sft and distill: one loop, many objectives."""
