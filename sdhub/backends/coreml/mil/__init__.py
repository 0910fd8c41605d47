"""ML programs (MIL, the Model Intermediate Language of Core ML), read from disk and run with torch.

files          the folder of an .mlpackage: manifest, specification, weight files
types          scalar and tensor types
packing        integers of 1 to 6 bits
weights        weight files, blob format 2
values         constants, written in the program or in a weight file
decompression  the `constexpr_…` operations
program        functions, operations and what names what
description    inputs, outputs and metadata of a model
operations/    what each operation computes
machine        a program bound to those, run in order

Sources: MIL.proto and Model.proto, the headers under mlmodel/src/MILBlob, and the documentation of the MIL
operations, all in the repository of coremltools. Nothing here uses coremltools' own reader of programs.
"""
