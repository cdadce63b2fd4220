"""What models write for tool calls and reasoning, read as it comes: one file per format."""
