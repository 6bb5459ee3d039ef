"""What a run is asked to do, where each value comes from, and what is wrong with it."""
