"""Self-contained HTML pages: what data look like, and what a training looked like."""
