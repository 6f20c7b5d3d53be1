"""The device process: queue, batches, slots and heads. One thread owns the device."""
