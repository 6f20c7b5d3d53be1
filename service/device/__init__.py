"""What the device thread owns: the queue of rows, batches, slots and heads."""
