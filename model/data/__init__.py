"""From files of events to training examples. Free of torch."""
