"""The raystill command."""
