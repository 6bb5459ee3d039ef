"""From a name to a classifier with LoRA."""
