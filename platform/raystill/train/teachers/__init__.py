"""Where the KD term's distributions come from: the store, models in process, judges of rollouts."""
