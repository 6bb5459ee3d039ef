"""What is on disk to go on from: the adapter, and savepoints of a run."""
