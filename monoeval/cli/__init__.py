"""The command line: thin callers of the Python API. Nothing else prints."""
