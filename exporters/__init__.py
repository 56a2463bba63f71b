"""From a torch model, a checkpoint or any ONNX file to typed ONNX graphs; imports `specs` and never `engines`.

    export          spec -> trace -> lower -> passes -> the contents of a bundle; weights: each stored once
    checkpoints/    a checkpoint's folder -> spec and parameters, one family a file
    onnx_models/    any ONNX file -> the same contents, with itself as the oracle
    ops/            the ONNX side of each custom op
    passes/         PIPELINES[lowering, precision]: what each target class makes of a graph
    calibration/    the range of every tensor that INT8 quantises
    golden/         what the bundle is held against, and how far torch itself is from float64

Import the module that is needed: nothing is imported here, so that one part does not cost the others' start-up.
"""
