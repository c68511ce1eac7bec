"""Pretrained backbones: names, loading, preprocessing, and features extracted once."""
