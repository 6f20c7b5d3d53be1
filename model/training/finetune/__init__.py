"""Fine-tuning of a patch and a head per task over a frozen backbone."""
