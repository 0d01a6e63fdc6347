"""Closed teachers: an async client for OpenAI-compatible endpoints, its limits, its budget, its ledger."""
