"""Ray session rules, plans and cost."""
