"""Training: pretraining of a backbone, fine-tuning of one task or many, evaluation."""
