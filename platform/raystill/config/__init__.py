"""Configuration: one pydantic schema, loaded from layered YAML files. Imports no torch, ray or vllm."""
