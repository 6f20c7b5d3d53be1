"""The report of a bundle or a backbone: one HTML page that can be sent round."""
