"""Accuracy, monosemanticity and paired statistics: numbers with intervals."""
