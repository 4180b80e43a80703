"""The command line: options, progress, exit codes; no logic. Nothing here loads torch or onnxruntime by itself."""
