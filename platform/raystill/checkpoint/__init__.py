"""Training checkpoints: atomic, verified, safetensors and JSON only; what to keep is a pure function."""
