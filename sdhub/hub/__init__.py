"""The embedded Hub: repositories on this machine, for unmodified Hub clients.

A program of its own, on SQLite and content-addressed files; run it with `python -m sdhub.hub --root DIR` and set
`HF_ENDPOINT` to its address. It speaks enough of the Hub's HTTP API for `huggingface_hub` 1.x and 2.x, diffusers,
transformers and optimum-intel to create, upload, download and load.

How files travel:

- up to 10 MiB, and not of a type that git-lfs takes (safetensors, bin, zip, …): inside the commit, as on the Hub;
- others, from a client without `hf_xet` (or with `HF_HUB_DISABLE_XET=1`): git-lfs `basic`, one streamed PUT;
- others, from a client with `hf_xet`: the Xet protocol. Nothing in a client's requests says whether it has
  `hf_xet`, and one that has asks for a Xet token without a way back, so this Hub takes Xet uploads: xorbs and
  shards, from which it puts the files together and checks them. Downloads are plain HTTP for everyone.

Limits: 64 GiB a file, 32 MiB a line and 2 GiB a commit of regular files, 25,000 operations a commit, 10 MiB a
JSON body, 68 MiB a xorb, 64 GiB the files of one shard. While a Xet upload runs, and for ten minutes after, its
data is on disk twice.

Jobs run where the server is asked to run them (see `jobs.py`); buckets are folders that they write to, whose files
have no other way in or out.

Not here: git over HTTP, LFS multipart, `.gitignore` on the server, super-squash, copying LFS files between
repositories, the dataset viewer; scheduled jobs, their metrics, ports and SSH.
"""
