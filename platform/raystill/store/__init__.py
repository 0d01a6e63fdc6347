"""The teacher store: immutable Parquet parts plus commits; written once, read by any number of students."""
