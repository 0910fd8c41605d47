"""OpenVINO in float32: on processors with bfloat16 it would compute in that, and hide what a test looks at."""

EXACT = {"INFERENCE_PRECISION_HINT": "f32"}
