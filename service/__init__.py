"""HTTP, the device process, batching, slots, metrics and the command line."""
