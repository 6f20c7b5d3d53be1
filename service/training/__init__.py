"""What the training commands do once their options are read; imports torch."""
