"""Pretraining of small backbones, with and without non-negativity."""
