"""What this machine is and has at the moment: GPUs, memory, time, network, versions, a way to the Hub.

`gpus.list_gpus` is asked before a run, `meters.MemoryMonitor` throughout. Knows of no model and no data; imports
`config` and `catalog` at most.
"""
