"""The stage curate: which teacher outputs are good enough to train on, and why the others are not."""
