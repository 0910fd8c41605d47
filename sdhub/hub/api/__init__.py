"""The Hub's HTTP API, as far as `huggingface_hub` speaks it."""
