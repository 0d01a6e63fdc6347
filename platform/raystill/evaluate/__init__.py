"""Stage evaluate: how far the student is from the teacher."""
