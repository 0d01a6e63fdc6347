"""Benchmarks: us and a pinned peer, interleaved in one run."""
