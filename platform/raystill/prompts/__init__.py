"""Stage prepare: prompt sources become one immutable, deduplicated, split prompt table."""
