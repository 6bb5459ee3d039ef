"""Several runs and what they say together. `launches.py` starts them, each as a process of its own; `compare.py` plans
a grid of them and writes its table."""
