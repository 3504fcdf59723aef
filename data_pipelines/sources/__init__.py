"""One file a published data set, and table.py for any other."""
