"""What a run is asked to do, where each value comes from, and what is wrong with it.

`command_line.parse_run_config` turns words into a checked `run_config.RunConfig`, which every wing above reads. No
module needs torch; of the wings, only `catalog` lies below.
"""
