"""A store in the formats of other tools. One module per format; `formats` chooses."""
