"""Divergences and their chunked kernels: pure functions on tensors."""
