"""raystill: turn a large teacher model into a small student on Ray. See README.md for the tour."""

__version__ = "0.1.0"
