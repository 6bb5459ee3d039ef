"""One optimizer step, whatever runs it; and the passes of an evaluation."""
