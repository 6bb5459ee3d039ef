"""What can be chosen by name: one file per table, one entry per choice; to add your own, add an entry there."""
