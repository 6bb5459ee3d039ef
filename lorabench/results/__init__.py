"""What a run leaves behind: the record, the metrics, the table, the curves, a tracker's run."""
