"""A run as one page that people send around."""
