"""Images and labels, and everything that changes them: noise, corruption, shots, splits."""
