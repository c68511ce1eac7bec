"""Adapters from features to codes: sparse autoencoders, contrastive heads and their controls."""
