"""What each benchmark changes: labels, training rows, test images or domain."""
