"""How a step gets faster: texts are packed without padding, and the step is captured and replayed as CUDA graphs.

`choice.build_execution` gives a run this step or the eager one, and says why. Imports `step` and wings below it.
"""
