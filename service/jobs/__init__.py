"""Long jobs of the command line: training, comparison, packing, the demo."""
