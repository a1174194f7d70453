"""For ``run_notebooks.py``: what can be checked before any work, and the plan of ``--dry-run``."""
