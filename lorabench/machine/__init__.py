"""What this machine is and has: GPUs, memory, time, network, versions."""
