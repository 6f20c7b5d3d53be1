"""``peterrec compare``: every model of the paper, trained and judged side by side."""
