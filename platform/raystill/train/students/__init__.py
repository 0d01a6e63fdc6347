"""Where a student's first weights come from, and what is put around them: adapters, 4 bits, new tokens."""
