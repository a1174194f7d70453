"""For whoever plays or teaches with a model behind an address (the ``api`` extra): entries, client, paid replies."""
