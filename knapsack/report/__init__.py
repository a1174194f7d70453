"""For whoever sends a run around: ``page`` makes one page of its notebooks, ``episodes`` one of its episodes."""
