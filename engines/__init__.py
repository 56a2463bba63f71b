"""Verbs of the machine that compiles, checks and runs: never imports torch, onnxscript or exporters.

    backends/      the compilers, behind one protocol; plugins/: CUDA kernels for what they do not know
    onnx_files/    what an ONNX file holds, read with the standard library alone
    building/      a bundle's typed graphs -> engines
    checking/      every stage of a bundle against its golden data
    runtime/       what an app embeds: open a bundle and run it

Importing this package imports nothing else.
"""
