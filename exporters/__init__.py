"""From a torch model, or any ONNX file, to typed ONNX graphs; imports `specs` and never `engines`.

    export_model    any ONNX file -> the contents of a bundle; reference, made_up_inputs, samples: what it is
                    compared with; run_apart: ONNX Runtime in a process of its own
    read_model      a file -> onnx_ir.Model, checked; normalize_model says in one way what makers say in many
    ops/            the ONNX side of each custom op
    passes/         PIPELINES[lowering, precision]: what each target class makes of a graph
    calibrate       the range of every tensor that INT8 quantises

Import the module that is needed: nothing is imported here, so that one part does not cost the others' start-up.
"""
