"""For whoever wants to know or make the scale model: its architecture, what it practised, and the base itself."""
