"""From one command line to the processes of a run.

`python -m lorabench.launch` starts them, and in each of them `request.read_launch_request` tells what the launcher was
asked for. Imports `models`, since the strategy depends on a model's size, and wings below it.
"""
