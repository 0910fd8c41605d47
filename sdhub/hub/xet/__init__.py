"""The receiving half of the Xet protocol (https://huggingface.co/docs/xet), for clients that upload with `hf_xet`.

Such a client sends files as chunks in xorbs, then a shard that says how files are made of them. The files are put
together at once, checked against their SHA-256, and kept like any other; downloads are plain HTTP.
"""
