"""Self-supervised pretraining of a backbone on click histories."""
