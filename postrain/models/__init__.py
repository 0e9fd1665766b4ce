"""Where models come from, what is put on them, and how they leave again."""
