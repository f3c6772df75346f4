"""What the systems learn from: one data source a file."""
