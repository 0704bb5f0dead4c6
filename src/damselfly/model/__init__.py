"""What an artifact is: pure values, no input or output."""
