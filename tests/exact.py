"""OpenVINO in float32, whatever the processor would rather do, so that a test sees what it looks at.

With bfloat16 units it computes in bfloat16, and with VNNI it rounds the inputs of layers with compressed weights.
"""

EXACT = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
