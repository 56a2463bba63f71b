"""Odd models of a few nodes, in ONNX's text form: interfaces, control flow, types."""

from __future__ import annotations

from collections.abc import Mapping

TEXTS: Mapping[str, str] = {
    # interfaces
    "no_inputs": """<ir_version: 8, opset_import: ["": 17]>
        g () => (float[2, 3] y) { s = Constant<value = int64[2] {2, 3}>() y = ConstantOfShape<value = float[1]
            {0.5}>(s) }""",
    "scalar_input": """<ir_version: 8, opset_import: ["": 17]>
        g (float x, float[N] v) => (float[N] y, float z) { y = Mul(v, x) z = Neg(x) }""",
    "static": """<ir_version: 8, opset_import: ["": 17]>
        g (float[2, 4] x) => (float[2, 4] y) { y = Tanh(x) }""",
    "zero_dim": """<ir_version: 8, opset_import: ["": 17]>
        g (float[0, 4] x, float[N, 4] z) => (float[M, 4] y) { y = Concat<axis = 0>(x, z) }""",
    "unused_input": """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 4] x, float[N, 7] unused, int64 alsounused) => (float[N, 4] y) { y = Sigmoid(x) }""",
    "input_is_output": """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 4] x) => (float[N, 4] x, float[N, 4] y) { y = Relu(x) }""",
    "only_passes_on": """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 4] x) => (float[N, 4] x) { }""",
    "initializer_is_output": """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 3] x) => (float[3] w, float[N, 3] y) <float[3] w = {1, 2, 3}> { y = Mul(x, w) }""",
    "ir3_weights_are_inputs": """<ir_version: 3, opset_import: ["": 9]>
        g (float[N, 3] x, float[3] w) => (float[N, 3] y) <float[3] w = {1, 2, 3}> { y = Mul(x, w) }""",
    "overridable_default": """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 3] x, float[3] w) => (float[N, 3] y) <float[3] w = {1, 2, 3}> { y = Mul(x, w) }""",
    "unnamed_dims": """<ir_version: 8, opset_import: ["": 17]>
        g (float[?, ?] x, float[?, ?] z) => (float[?, ?] y) { y = MatMul(x, z) }""",
    "unnamed_equal_dims": """<ir_version: 8, opset_import: ["": 17]>
        g (float[?, 4] x, float[?, 4] z) => (float[?, 4] y) { y = Add(x, z) }""",
    "shared_dim": """<ir_version: 8, opset_import: ["": 17]>
        g (float[batch, 4] x, float[batch, 4] z) => (float[batch, 4] y) { y = Sub(x, z) }""",
    "derived_dim": """<ir_version: 8, opset_import: ["": 17]>
        g (float[batch, time] x, float[batch, time] z) => (float[batch, two] y) { y = Concat<axis = 1>(x, z) }""",
    "output_without_shape": """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 4] x) => (float y) { y = Softmax<axis = -1>(x) }""",
    "output_lies_about_its_dim": """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 4] x) => (float[N, 5] y) { y = Softmax<axis = -1>(x) }""",
    # types
    "float64": """<ir_version: 8, opset_import: ["": 17]>
        g (double[N, 4] x) => (double[N, 4] y) <double[4] w = {1.5, 2, 3, 4}> { h = Mul(x, w) y = Exp(h) }""",
    "float16": """<ir_version: 8, opset_import: ["": 17]>
        g (float16[N, 4] x) => (float16[N, 4] y) { h = Add(x, x) y = Relu(h) }""",
    "bfloat16_inside": """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 4] x) => (float[N, 4] y) { h = Cast<to = 16>(x) k = Cast<to = 1>(h) y = Relu(k) }""",
    "bfloat16_input": """<ir_version: 8, opset_import: ["": 17]>
        g (bfloat16[N, 4] x) => (float[N, 4] y) { y = Cast<to = 1>(x) }""",
    "uint8_input": """<ir_version: 8, opset_import: ["": 17]>
        g (uint8[N, 4] x) => (float[N, 4] y, uint8[N, 4] z) { y = Cast<to = 1>(x) z = BitShift<direction =
            "LEFT">(x, x) }""",
    "bool_input": """<ir_version: 8, opset_import: ["": 17]>
        g (bool[N, 4] m, float[N, 4] x, int64[N] i) => (float[N, 4] y, bool[N, 4] n, int64[N] j) {
            z = Constant<value_float = 0.0>() y = Where(m, x, z) n = Not(m) j = Neg(i) }""",
    "integers": """<ir_version: 8, opset_import: ["": 17]>
        g (int64[N, 4] i, int32[N, 4] k, int8[N] b, uint16[N] u) => (int64[N, 4] s, int32[N, 4] t, int8[N] c,
            uint16[N] v) {
            s = Add(i, i) t = Mul(k, k) c = Identity(b) v = Identity(u) }""",
    "string_input": """<ir_version: 8, opset_import: ["": 17, "ai.onnx.ml": 3]>
        g (string[N] s) => (int64[N] y) { y = ai.onnx.ml.LabelEncoder<keys_strings = ["a"], values_int64s =
            [1]>(s) }""",
    "string_output": """<ir_version: 8, opset_import: ["": 17, "ai.onnx.ml": 3]>
        g (int64[N] s) => (string[N] y) { y = ai.onnx.ml.LabelEncoder<keys_int64s = [1], values_strings =
            ["a"]>(s) }""",
    "sequence_output": """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 4] x) => (seq(float[N, 4]) y) { y = SequenceConstruct(x, x) }""",
    "sequence_inside": """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 4] x) => (float[M, 4] y) { s = SequenceConstruct(x, x) y = ConcatFromSequence<axis = 0>(s) }""",
    "optional_output": """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 4] x) => (optional(float[N, 4]) y) { y = Optional(x) }""",
    # operators
    "opset7_batchnorm": """<ir_version: 3, opset_import: ["": 7]>
        g (float[N, 2, H] x) => (float[N, 2, H] y)
        <float[2] s = {1, 2}, float[2] b = {0, 1}, float[2] m = {0, 0.5}, float[2] v = {1, 2}>
        { y = BatchNormalization<epsilon = 0.001>(x, s, b, m, v) }""",
    "opset8_upsample": """<ir_version: 3, opset_import: ["": 8]>
        g (float[N, 1, 2, 2] x) => (float[N, 1, 4, 4] y) { y = Upsample<mode = "nearest", scales = [1.0, 1.0,
            2.0, 2.0]>(x) }""",
    "opset9_gemm": """<ir_version: 4, opset_import: ["": 9]>
        g (float[N, 3] x) => (float[N, 2] y) <float[2, 3] w = {1, 2, 3, 4, 5, 6}, float[2] b = {1, 2}> { y =
            Gemm<transB = 1>(x, w, b) }""",
    "opset10_slice": """<ir_version: 5, opset_import: ["": 10]>
        g (float[N, 6] x) => (float[N, 3] y) <int64[1] s = {0}, int64[1] e = {6}, int64[1] a = {1}, int64[1] t
            = {2}> { y = Slice(x, s, e, a, t) }""",
    "opset11_softmax": """<ir_version: 6, opset_import: ["": 11]>
        g (float[N, 3, 4] x) => (float[N, 3, 4] y) { y = Softmax<axis = 1>(x) }""",
    "opset12_training": """<ir_version: 7, opset_import: ["": 12]>
        g (float[N, 8] x) => (float[N, 8] y) <float r = {0.5}, bool t = {0}> { y = Dropout(x, r, t) }""",
    "opset12_dropout_trains": """<ir_version: 7, opset_import: ["": 12]>
        g (float[N, 80] x) => (float[N, 80] y) <float r = {0.5}, bool t = {1}> { y = Dropout(x, r, t) }""",
    "batchnorm_trains": """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 2, 5] x) => (float[N, 2, 5] y, float[2] rm, float[2] rv)
        <float[2] s = {1, 2}, float[2] b = {0, 1}, float[2] m = {0, 0.5}, float[2] v = {1, 2}>
        { y, rm, rv = BatchNormalization<training_mode = 1>(x, s, b, m, v) }""",
    "opset24_swish": """<ir_version: 11, opset_import: ["": 24]>
        g (float[N, 4] x) => (float[N, 4] y) { y = Swish(x) }""",
    "opset23_rms": """<ir_version: 11, opset_import: ["": 23]>
        g (float[N, 4] x) => (float[N, 4] y) <float[4] w = {1, 2, 3, 4}> { y = RMSNormalization(x, w) }""",
    "opset21_groupnorm": """<ir_version: 10, opset_import: ["": 21]>
        g (float[N, 4, 3] x) => (float[N, 4, 3] y) <float[4] s = {1, 2, 3, 4}, float[4] b = {0, 1, 0, 1}>
        { y = GroupNormalization<num_groups = 2>(x, s, b) }""",
    "random_output": """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 40] x) => (float[N, 40] y) { r = RandomNormalLike(x) y = Add(x, r) }""",
    "if": """<ir_version: 8, opset_import: ["": 17]>
        g (bool c, float[N, 4] x) => (float[N, 4] y) {
            y = If (c) <then_branch = t () => (float[N, 4] a) { a = Relu(x) }, else_branch = e () => (float[N,
            4] b) { b = Neg(x) }>
        }""",
    "loop": """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 4] x) => (float[N, 4] y) <int64 n = {3}, bool c = {1}> {
            y = Loop (n, c, x) <body = b (int64 i, bool go, float[N, 4] h) => (bool go2, float[N, 4] k) {
                go2 = Identity(go) one = Constant<value_float = 1.25>() k = Mul(h, one) }>
        }""",
    "scan": """<ir_version: 8, opset_import: ["": 17]>
        g (float[T, 4] x) => (float[4] last, float[T, 4] all) {
            zero = Constant<value = float[4] {0, 0, 0, 0}>()
            last, all = Scan (zero, x) <num_scan_inputs = 1, body = b (float[4] s, float[4] v) => (float[4] n,
            float[4] o) {
                n = Add(s, v) o = Identity(n) }>
        }""",
    "topk": """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 9] x) => (float[N, 2] v, int64[N, 2] i) <int64[1] k = {2}> { v, i = TopK(x, k) }""",
    "topk_k_is_an_input": """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 9] x, int64[1] k) => (float[N, K] v, int64[N, K] i) { v, i = TopK(x, k) }""",
    "nonzero": """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 4] x) => (int64[2, M] y) { h = Relu(x) y = NonZero(h) }""",
    "nan_output": """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 9] x) => (float[N, 9] y) { y = Sqrt(x) }""",
    "overflows_half": """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 9] x) => (float[N, 9] y) <float k = {1e6}> { y = Mul(x, k) }""",
    "quantized_uint8": """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 4] x) => (float[N, 2] y)
        <float s = {0.02}, uint8 z = {128}, float ws = {0.01}, int8 wz = {0}, int8[4, 2] w = {1, -2, 30, 4,
            -50, 6, 70, -8}> {
            q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) wd = DequantizeLinear(w, ws, wz) y =
            MatMul(d, wd) }""",
    "matmul_integer": """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 4] x) => (float[N, 2] y) <int8[4, 2] w = {1, -2, 30, 4, -50, 6, 70, -8}> {
            q, s, z = DynamicQuantizeLinear(x) p = MatMulInteger(q, w, z) f = Cast<to = 1>(p) y = Mul(f, s) }""",
    "qlinear_conv": """<ir_version: 8, opset_import: ["": 13]>
        g (uint8[N, 1, 5, 5] x) => (uint8[N, 1, 5, 5] y)
        <float xs = {0.02}, uint8 xz = {3}, uint8[1, 1, 1, 1] w = {7}, float ws = {0.1}, uint8 wz = {1}, float
            ys = {0.05}, uint8 yz = {0}>
        { y = QLinearConv(x, xs, xz, w, ws, wz, ys, yz) }""",
    # domains and functions
    "contrib": """<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]>
        g (float[N, 4] x) => (float[N, 4] y) { h = com.microsoft.Gelu(x) y = com.microsoft.QuickGelu(h) }""",
    "sklearn": """<ir_version: 6, opset_import: ["": 11, "ai.onnx.ml": 1]>
        g (float[N, 2] x) => (int64[N] label, float[N, 2] scores) {
            raw, p = ai.onnx.ml.LinearClassifier<classlabels_ints = [0, 1], coefficients = [1.0, 2.0, -1.0,
            -2.0], intercepts = [0.1, -0.1], post_transform = "SOFTMAX">(x)
            label = Identity(raw) scores = Identity(p) }""",
    "unknown_domain": """<ir_version: 8, opset_import: ["": 17, "my.company": 1]>
        g (float[N, 4] x) => (float[N, 4] y) { h = Relu(x) y = my.company.SecretSauce(h) }""",
    "unknown_op": """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 4] x) => (float[N, 4] y) { y = Relux(x) }""",
    "function": """<ir_version: 8, opset_import: ["": 17, "local": 1]>
        g (float[N, 4] x) => (float[N, 4] y) { h = local.twice(x) y = local.act<slope = 0.25>(h) }
        <domain: "local", opset_import: ["": 17]> once (a) => (b) { b = Tanh(a) }
        <domain: "local", opset_import: ["": 17, "local": 1]> twice (a) => (b) { c = local.once(a) b = local.once(c) }
        <domain: "local", opset_import: ["": 17]> act<slope> (a) => (b) { b = LeakyRelu<alpha: float =
            @slope>(a) }""",
    "function_of_other_opset": """<ir_version: 8, opset_import: ["": 17, "local": 1]>
        g (float[N, 4] x) => (float[N, 4] y) { y = local.f(x) }
        <domain: "local", opset_import: ["": 13]> f (a) => (b) { b = Softmax(a) }""",
    # names
    "keywords": """<ir_version: 8, opset_import: ["": 17]>
        g (float[batch, 4] allow_pickle, float[batch, 4] file) => (float[batch, 4] args, float[batch, 4] kwds) {
            args = Add(allow_pickle, file) kwds = Sub(allow_pickle, file) }""",
}
