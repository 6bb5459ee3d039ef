"""From files, or a data set of the Hub, to classes, rows of tokens, and the rows of each step.

`task.load_task` reads the splits of a run, `batching.StepPlan` lays its rows out over steps and ranks. Imports wings
from `results` downward.
"""
