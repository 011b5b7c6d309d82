"""What bounds and hides what leaves a client. Pure: numbers and bytes, no model, no engine, no files."""
