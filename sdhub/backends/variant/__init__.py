"""The gate of variants: what a folder that says it is one may hold, and the view of it that libraries load.

A variant is data from strangers as a checkpoint is. Each backend declares the `Layout` of its variants; `vet`
holds a folder against it, and `lay` writes a folder of sdhub's own: JSON from the vetted documents, the index
anew, and links to the vetted weights. Loaders are given that and never the stranger's folder.
"""
