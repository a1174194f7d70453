"""Agents learn their runtime: a reproducible report on Opaque Knapsack (arXiv 2603.01209).

Data flows one way through the modules: ``tasks`` → ``teachers`` and ``traces`` → ``finetune`` →
``evaluate`` → ``metrics``, ``statistics``, ``figures``. The notebooks call them in that order.
"""

__version__ = "0.1.0"
