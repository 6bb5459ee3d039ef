"""Before a run: whether it fits and how long it takes. Doors: `memory.plan_memory`, `command.plan_command`.

A plan runs the code of the run itself on tensors without storage, and keeps the books that the GPU's allocator keeps.
"""
