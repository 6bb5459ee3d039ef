"""How a step gets faster: texts are packed without padding, and the step is captured and replayed as CUDA graphs.

`choice.choose_execution` says whether a run gets this step or the eager one, and why; `choice.build_execution` makes
it. Imports `step` and wings below it.
"""
