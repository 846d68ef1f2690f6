"""Small nets that laws are tested on: one for each kind of structure that passes look for."""

from collections.abc import Mapping

_SIZES = "<B: 1..64 = 2, S: 1..32 = 5>"

NETS: Mapping[str, str] = {
    "perceptron": """graph main<B: 1..64 = 2>(%x: f32[B, 8]) {
  %0 = linear(%x, @a.w: f32[16, 8], @a.b: f32[16]): f32[B, 16]  # a
  %1 = relu(%0): f32[B, 16]
  %2 = matmul(%1, @b.w: f32[16, 4]): f32[B, 4]  # b
  %3 = add(%2, @b.b: f32[4]): f32[B, 4]  # b
  %4 = full() {value=0.25, dtype=f32}: f32[]
  %5 = mul(%3, %4): f32[B, 4]
  return %5
}""",
    "gated": f"""graph main{_SIZES}(%x: f32[B, S, 8]) {{
  %0 = mul(%x, %x): f32[B, S, 8]
  %1 = mean(%0) {{axes=[2], keep=true}}: f32[B, S, 1]
  %2 = full() {{value=1e-06, dtype=f32}}: f32[]
  %3 = add(%1, %2): f32[B, S, 1]
  %4 = rsqrt(%3): f32[B, S, 1]
  %5 = mul(%x, %4): f32[B, S, 8]
  %6 = mul(@norm: f32[8], %5): f32[B, S, 8]
  %7 = linear(%6, @gate: f32[12, 8]): f32[B, S, 12]  # mlp.gate
  %8 = sigmoid(%7): f32[B, S, 12]  # mlp
  %9 = mul(%7, %8): f32[B, S, 12]  # mlp
  %10 = linear(%6, @up: f32[12, 8]): f32[B, S, 12]  # mlp.up
  %11 = mul(%9, %10): f32[B, S, 12]  # mlp
  %12 = linear(%11, @down: f32[8, 12]): f32[B, S, 8]  # mlp.down
  %13 = add(%x, %12): f32[B, S, 8]
  return %13
}}""",
    "decoder": f"""graph main{_SIZES}(%x: f32[B, S, 8], %p: bool[B, S]) {{
  %0 = linear(%x, @q: f32[8, 8], @qb: f32[8]): f32[B, S, 8]  # attn.q
  %1 = reshape(%0) {{shape=[`B`, `S`, 2, 4]}}: f32[B, S, 2, 4]
  %2 = transpose(%1) {{order=[0, 2, 1, 3]}}: f32[B, 2, S, 4]
  %3 = linear(%x, @k: f32[4, 8]): f32[B, S, 4]  # attn.k
  %4 = reshape(%3) {{shape=[`B`, `S`, 1, 4]}}: f32[B, S, 1, 4]
  %5 = transpose(%4) {{order=[0, 2, 1, 3]}}: f32[B, 1, S, 4]
  %6 = reshape(%5) {{shape=[`B`, 1, 1, `S`, 4]}}: f32[B, 1, 1, S, 4]
  %7 = expand(%6) {{shape=[`B`, 1, 2, `S`, 4]}}: f32[B, 1, 2, S, 4]
  %8 = reshape(%7) {{shape=[`B`, 2, `S`, 4]}}: f32[B, 2, S, 4]
  %9 = transpose(%8) {{order=[0, 1, 3, 2]}}: f32[B, 2, 4, S]
  %10 = matmul(%2, %9): f32[B, 2, S, S]
  %11 = full() {{value=0.5, dtype=f32}}: f32[]
  %12 = mul(%10, %11): f32[B, 2, S, S]
  %13 = arange() {{length=`S`}}: i64[S]
  %14 = reshape(%13) {{shape=[1, 1, 1, `S`]}}: i64[1, 1, 1, S]
  %15 = reshape(%13) {{shape=[1, 1, `S`, 1]}}: i64[1, 1, S, 1]
  %16 = le(%14, %15): bool[1, 1, S, S]
  %17 = reshape(%p) {{shape=[`B`, 1, 1, `S`]}}: bool[B, 1, 1, S]
  %18 = logical_and(%16, %17): bool[B, 1, S, S]
  %19 = full() {{value=0.0, dtype=f32}}: f32[]
  %20 = full() {{value=-3.4028234663852886e+38, dtype=f32}}: f32[]
  %21 = where(%18, %19, %20): f32[B, 1, S, S]
  %22 = add(%12, %21): f32[B, 2, S, S]
  %23 = softmax(%22) {{axis=3}}: f32[B, 2, S, S]
  %24 = matmul(%23, %8): f32[B, 2, S, 4]  # attn
  %25 = transpose(%24) {{order=[0, 2, 1, 3]}}: f32[B, S, 2, 4]
  %26 = reshape(%25) {{shape=[`B`, `S`, 8]}}: f32[B, S, 8]
  return %26
}}""",
    "experts": """graph main<T: 1..32 = 5>(%x: f32[T, 8]) {
  %0 = linear(%x, @gate: f32[4, 8]): f32[T, 4]  # gate
  %1 = softmax(%0) {axis=1}: f32[T, 4]
  %2 = argmax(%1) {axis=1, keep=true}: i64[T, 1]
  %3 = reshape(%2) {shape=[`T`]}: i64[T]
  %4 = index_select(@up: f32[4, 6, 8], %3) {axis=0}: f32[T, 6, 8]
  %5 = reshape(%x) {shape=[`T`, 8, 1]}: f32[T, 8, 1]
  %6 = matmul(%4, %5): f32[T, 6, 1]  # experts
  %7 = reshape(%6) {shape=[`T`, 6]}: f32[T, 6]
  %8 = relu(%7): f32[T, 6]
  %9 = grouped_linear(%8, @down: f32[4, 8, 6], %3): f32[T, 8]  # experts
  %10 = gather(%1, %2) {axis=1}: f32[T, 1]
  %11 = mul(%9, %10): f32[T, 8]
  return %11
}""",
    "convolution": """graph main<B: 1..64 = 2>(%x: f32[B, 3, 8, 8]) {
  %0 = transpose(%x) {order=[0, 2, 3, 1]}: f32[B, 8, 8, 3]
  %1 = transpose(@conv.w: f32[4, 3, 3, 3]) {order=[0, 2, 3, 1]}: f32[4, 3, 3, 3]
  %2 = conv(%0, %1) {stride=[2, 2], padding=[1, 1], dilation=[1, 1]}: f32[B, 4, 4, 4]  # conv
  %3 = batch_norm(@mean: f32[4], @variance: f32[4], %2, @scale: f32[4], @shift: f32[4]): f32[B, 4, 4, 4]  # bn
  %4 = transpose(%3) {order=[0, 3, 1, 2]}: f32[B, 4, 4, 4]
  %5 = relu(%4): f32[B, 4, 4, 4]
  %6 = full() {value=6.0, dtype=f32}: f32[]
  %7 = minimum(%5, %6): f32[B, 4, 4, 4]
  %8 = mean(%7) {axes=[2, 3], keep=true}: f32[B, 4, 1, 1]
  %9 = sigmoid(%8): f32[B, 4, 1, 1]
  %10 = mul(%7, %9): f32[B, 4, 4, 4]
  %11 = reshape(%10) {shape=[`B`, 4, 16]}: f32[B, 4, 16]
  %12 = transpose(%11) {order=[0, 2, 1]}: f32[B, 16, 4]
  %13 = sum(%12) {axes=[1]}: f32[B, 4]
  return %13
}""",
    "positions": f"""graph main{_SIZES}(%ids: i64[B, S]) {{
  %0 = embedding(@words: f32[10, 8], %ids): f32[B, S, 8]
  %1 = arange() {{length=`S`}}: i64[S]
  %2 = reshape(%1) {{shape=[1, `S`]}}: i64[1, S]
  %3 = embedding(@places: f32[32, 8], %2): f32[1, S, 8]
  %4 = expand(%3) {{shape=[`B`, `S`, 8]}}: f32[B, S, 8]
  %5 = add(%0, %4): f32[B, S, 8]
  %6 = reshape(%5) {{shape=[`B`, `S`, 2, 4]}}: f32[B, S, 2, 4]
  %7 = transpose(%6) {{order=[0, 2, 1, 3]}}: f32[B, 2, S, 4]
  %8 = cast(%1) {{dtype=f32}}: f32[S]
  %9 = reshape(%8) {{shape=[`S`, 1]}}: f32[S, 1]
  %10 = mul(%9, @frequencies: f32[2]): f32[S, 2]
  %11 = concat(%10, %10) {{axis=1}}: f32[S, 4]
  %12 = cos(%11): f32[S, 4]
  %13 = sin(%11): f32[S, 4]
  %14 = mul(%7, %12): f32[B, 2, S, 4]
  %15 = slice(%7) {{axis=3, start=2, stop=4}}: f32[B, 2, S, 2]
  %16 = neg(%15): f32[B, 2, S, 2]
  %17 = slice(%7) {{axis=3, stop=2}}: f32[B, 2, S, 2]
  %18 = concat(%16, %17) {{axis=3}}: f32[B, 2, S, 4]
  %19 = mul(%18, %13): f32[B, 2, S, 4]
  %20 = add(%14, %19): f32[B, 2, S, 4]
  %21 = tanh(%20): f32[B, 2, S, 4]
  return %21, %7
}}""",
}
