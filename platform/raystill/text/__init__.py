"""Text to tokens and back: one chat renderer for teacher, training and evaluation."""
