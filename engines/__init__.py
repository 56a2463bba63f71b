"""Verbs of the machine that compiles, checks and runs: never imports torch, onnxscript or exporters.

Importing this package imports nothing else.
"""
