"""Agents learn their runtime: a reproducible report on Opaque Knapsack (arXiv 2603.01209).

The study, in the order in which to read it; each file uses those above it:

1. ``tasks``          an instance: drawn, solved, written
2. ``environment``    four tools, a budget, a score
3. ``runtime``        the interpreters under comparison: persistent, stateless, carry-over
4. ``prompts``        every text that an agent reads
5. ``agent``          one episode, and ways to play many
6. ``teacher``        the rule-based teacher, in two styles
7. ``traces``         an episode on the disk
8. ``training_data``  the paper's filters; conversations as rows
9. ``finetune``       rows → adapter
10. ``models``        who replies: a local model
11. ``evaluate``      models × runtimes × tasks, stopped and resumed

``names`` (what a block binds and needs), ``chat_template`` (a conversation as tokens) and ``runs`` (a run's folder,
files that are whole or absent) serve them. What you do not need today lies in rooms: ``sandbox`` (who executes
model-written code), ``endpoints`` (a model behind an address), ``gpu`` (Unsloth, 4 bit, vLLM), ``preflight`` (checks
and dry run), ``analysis`` (notebook 05: numbers, tables, claims, figures), ``nano`` (how the scale model was made).
Imports go one way: the study knows the rooms only inside the function that needs one, and no room but ``analysis``
knows ``analysis``.
"""

__version__ = "0.1.0"
