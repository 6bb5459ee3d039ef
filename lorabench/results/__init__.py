"""What a run leaves for its reader: the record, the metrics, the table, the curves, a tracker's run.

`run_folder` reads and writes the files, `report` puts them into words. No module needs torch. Imports `machine` and
wings below it.
"""
