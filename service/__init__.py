"""What runs: the device process, HTTP workers, their supervisor, and the command line."""
