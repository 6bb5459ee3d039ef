"""Starting the processes of a run, and what their launcher was asked for."""
