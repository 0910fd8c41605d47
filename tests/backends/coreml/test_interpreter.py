"""Packages of real models against torch, what a package takes, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from sdhub.backends.coreml.interpreter import open_package
from sdhub.core.errors import BuildError, UnsafeError, UsageError
from tests.backends.coreml.programs import run, save, snr

pytest.importorskip("coremltools")
import coremltools as ct
from coremltools.converters.mil.mil import Builder as mb
from coremltools.proto import Model_pb2


class Call(torch.nn.Module):
    """A module that computes what a function of it says."""

    def __init__(self, module, function):
        super().__init__()
        self.module, self.function = module, function

    def forward(self, *inputs):
        return self.function(self.module, *inputs)


def unet():
    from diffusers import UNet2DConditionModel
    from diffusers.models.attention_processor import AttnProcessor

    model = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=8,
        norm_num_groups=8,
    )
    model.set_attn_processor(AttnProcessor())
    inputs = {
        "sample": torch.randn(2, 4, 8, 8),
        "timestep": torch.full((2,), 500.0),
        "text": torch.randn(2, 5, 16),
    }
    return Call(model, lambda unet, *inputs: unet(*inputs, return_dict=False)[0]), inputs


def vae_decoder():
    from diffusers import AutoencoderKL
    from diffusers.models.attention_processor import AttnProcessor

    model = AutoencoderKL(
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
    )
    model.set_attn_processor(AttnProcessor())
    return Call(model, lambda vae, z: vae.decoder(vae.post_quant_conv(z))), {"z": torch.randn(1, 4, 8, 8)}


def text_encoder():
    from transformers import CLIPTextConfig, CLIPTextModel

    model = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=99, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
        )
    )

    def encode(model, ids):
        """Pooled output with the causal mask written out; transformers' own mask cannot be traced."""
        part, ids = getattr(model, "text_model", model), ids.to(torch.int32)
        mask = torch.full((77, 77), -1e4).triu(1)[None, None]
        hidden = part.encoder(inputs_embeds=part.embeddings(input_ids=ids), attention_mask=mask).last_hidden_state
        return part.final_layer_norm(hidden)[torch.arange(1), ids.argmax(-1)]

    ids = torch.randint(0, 90, (1, 77)).float()
    ids[0, 30:] = 98
    return Call(model, encode), {"ids": ids}


def split_einsum():
    """Attention as the Neural Engine wants it: (B, C, 1, S), head by head."""

    def attend(_, query, key, value):
        heads = zip(
            *[each.split(8, dim=1) for each in (query, value)], key.transpose(1, 3).split(8, dim=3), strict=True
        )
        results = []
        for q, v, k in heads:
            weights = torch.einsum("bchq,bkhc->bkhq", [q, k]) * 8**-0.5
            results.append(torch.einsum("bkhq,bchk->bchq", [weights.softmax(dim=1), v]))
        return torch.cat(results, dim=1)

    names = ("query", "key", "value")
    return Call(torch.nn.Identity(), attend), {name: torch.randn(2, 32, 1, 12) for name in names}


MODELS = {each.__name__: each for each in (unet, vae_decoder, text_encoder, split_einsum)}


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """By model: path of its fp16 package, inputs, and what torch computes from them in fp32."""
    folder, found = tmp_path_factory.mktemp("packages"), {}

    def make(name):
        if name not in found:
            torch.manual_seed(0)
            model, inputs = MODELS[name]()
            dtype = np.float32 if name == "text_encoder" else np.float16
            inputs = {key: value.half() if dtype == np.float16 else value for key, value in inputs.items()}
            values = [value.float() for value in inputs.values()]
            with torch.no_grad():
                traced = torch.jit.trace(model.eval(), values, check_trace=False)
                truth = model(*values)
            package = ct.convert(
                traced,
                inputs=[ct.TensorType(key, value.shape, dtype) for key, value in inputs.items()],
                outputs=[ct.TensorType("result", dtype=np.float32)],
                minimum_deployment_target=ct.target.iOS16,
                skip_model_load=True,
            )
            package.save(str(folder / f"{name}.mlpackage"))
            found[name] = (folder / f"{name}.mlpackage", inputs, truth)
        return found[name]

    return make


@pytest.mark.parametrize("name", MODELS)
def test_a_converted_model_computes_what_torch_does(packages, name):
    path, inputs, truth = packages(name)
    result = open_package(path).run(inputs)["result"]
    assert result.dtype == torch.float32
    assert result.shape == truth.shape
    assert snr(result, truth) >= 45


@pytest.mark.parametrize("name", ["vae_decoder", "split_einsum"])
def test_half_precision_rounds_more_and_stays_close(packages, name):
    path, inputs, truth = packages(name)
    single = snr(open_package(path).run(inputs)["result"], truth)
    half = snr(open_package(path, precision="float16").run(inputs)["result"], truth)
    assert 40 <= half < single


def test_half_precision_rounds_each_declared_result(tmp_path):
    def build(x):
        return mb.cast(x=mb.add(x=mb.add(x=x, y=np.float16(1)), y=np.float16(-1)), dtype="fp32")

    inputs = [np.array([2**-12, 2**-3], np.float16)]
    _, path = save(tmp_path, build, inputs, "iOS16")
    assert run(open_package(path), inputs)[0].tolist() == [2**-12, 2**-3]
    assert run(open_package(path, precision="float16"), inputs)[0].tolist() == [0, 2**-3]


def test_infinity_stays_where_half_precision_overflows(tmp_path):
    def build(x):
        return mb.cast(x=mb.mul(x=x, y=np.float16(4)), dtype="fp32")

    inputs = [np.array([60000], np.float16)]
    _, path = save(tmp_path, build, inputs, "iOS16")
    assert run(open_package(path), inputs)[0].tolist() == [240000.0]
    assert run(open_package(path, precision="float16"), inputs)[0].tolist() == [float("inf")]


def scaled(x):
    """Two constants in the weight file, one in the program."""
    x = mb.mul(x=x, y=np.linspace(1, 2, 12, dtype=np.float32).reshape(3, 4), name="scaled")
    x = mb.add(x=x, y=np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4), name="shifted")
    return mb.softmax(x=x, axis=-1, name="weights")


INPUT = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    model, path = save(tmp_path_factory.mktemp("saved"), scaled, [INPUT], "iOS16")
    model.author, model.license, model.version, model.short_description = "Ada", "MIT", "3", "Weights"
    model.user_defined_metadata.update({"sdhub.recipe": "abc", "license": "hidden"})
    model.save(str(path))
    return path


@pytest.fixture
def package(saved, tmp_path):
    """A copy of the small package, to be broken."""
    return shutil.copytree(saved, tmp_path / "broken.mlpackage")


def specification(package):
    return package / "Data" / "com.apple.CoreML" / "model.mlmodel"


def edit(package, change):
    """Rewrite the specification with `change` applied to its message; gives the block of operations too."""
    message = Model_pb2.Model()
    message.ParseFromString(specification(package).read_bytes())
    (block,) = message.mlProgram.functions["main"].block_specializations.values()
    change(message, block)
    specification(package).write_bytes(message.SerializeToString())


def find(block, kind, place=0):
    return [each for each in block.operations if each.type == kind][place]


def refused(package, error=BuildError, inputs=None):
    with pytest.raises(error) as raised:
        opened = open_package(package)
        if inputs is not None:
            run(opened, inputs)
    assert "\n" not in raised.value.message
    return raised.value.message


def test_says_what_it_takes_and_gives(saved):
    package = open_package(saved)
    assert {name: str(each) for name, each in package.inputs.items()} == {"x0": "float32 [3, 4]"}
    assert {name: str(each) for name, each in package.outputs.items()} == {"weights": "float32 [3, 4]"}
    assert package.specification_version == 7
    want = {"author": "Ada", "license": "MIT", "version": "3", "description": "Weights", "sdhub.recipe": "abc"}
    assert {key: package.metadata[key] for key in want} == want


def test_runs_arrays_and_tensors_and_leaves_them_as_they_are(saved):
    package, tensor = open_package(saved), torch.from_numpy(INPUT.copy())
    truth = torch.softmax(
        tensor * torch.linspace(1, 2, 12).reshape(3, 4) + torch.linspace(0, 1, 12).reshape(3, 4), -1
    )
    for given in (INPUT, tensor):
        torch.testing.assert_close(package.run({"x0": given})["weights"], truth)
    assert np.array_equal(tensor.numpy(), INPUT)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "takes x0; given nothing"),
        ({"x0": INPUT, "x1": INPUT}, "takes x0; given x0, x1"),
        ({"x0": INPUT.astype(np.float16)}, r"x0 must be float32 \[3, 4\], not float16 \[3, 4\]"),
        ({"x0": torch.zeros(4, 3)}, r"x0 must be float32 \[3, 4\], not float32 \[4, 3\]"),
        ({"x0": INPUT.tolist()}, "x0 must be an array, not list"),
    ],
)
def test_is_strict_about_inputs(saved, inputs, message):
    with pytest.raises(UsageError, match=message):
        open_package(saved).run(inputs)


def test_flexible_shapes_are_taken_within_their_bounds(tmp_path):
    class Double(torch.nn.Module):
        def forward(self, x):
            return x.reshape(x.shape[0], -1) * 2

    for shape, takes, refuses in (
        (ct.Shape((1, ct.RangeDim(2, 5), 3)), (1, 5, 3), (1, 6, 3)),
        (ct.EnumeratedShapes([(1, 2, 3), (1, 4, 3)]), (1, 4, 3), (1, 3, 3)),
    ):
        model = ct.convert(
            torch.jit.trace(Double(), torch.zeros(1, 2, 3)),
            inputs=[ct.TensorType("x", shape)],
            outputs=[ct.TensorType("y")],
            minimum_deployment_target=ct.target.iOS16,
            compute_precision=ct.precision.FLOAT32,
            skip_model_load=True,
        )
        model.save(str(tmp_path / "flexible.mlpackage"))
        package, given = open_package(tmp_path / "flexible.mlpackage"), torch.randn(takes)
        torch.testing.assert_close(package.run({"x": given})["y"], given.reshape(1, -1) * 2)
        with pytest.raises(UsageError, match="x must be"):
            package.run({"x": torch.zeros(refuses)})


def test_importing_it_brings_nothing_heavy():
    code = "import sys, sdhub.backends.coreml.interpreter; print({'torch', 'coremltools'} & set(sys.modules))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "set()\n"
    )


def test_refuses_what_is_no_package(tmp_path):
    assert (
        refused(tmp_path / "absent.mlpackage")
        == f"{tmp_path / 'absent.mlpackage'} is not an .mlpackage: no such folder"
    )
    assert "Manifest.json cannot be read" in refused(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"rootModelIdentifier": 1, "itemInfoEntries": {}}', "[" * 10**5]
)
def test_refuses_a_broken_manifest(package, text):
    (package / "Manifest.json").write_text(text)
    assert "Manifest.json is broken" in refused(package)


@pytest.mark.parametrize("path", ["../../outside", "/etc/passwd", "com.apple.CoreML/../../../outside", "a\\b"])
def test_refuses_a_manifest_that_leads_out(package, path):
    manifest = json.loads((package / "Manifest.json").read_text())
    manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"] = path
    (package / "Manifest.json").write_text(json.dumps(manifest))
    (package.parent / "outside").write_bytes(b"")
    assert "leads out of the package" in refused(package, UnsafeError)


def test_refuses_a_link_that_leads_out(package):
    outside = package.parent / "weight.bin"
    weights = package / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"
    shutil.move(weights, outside)
    weights.symlink_to(outside)
    assert "leads out of the package" in refused(package, UnsafeError)


def test_reads_a_snapshot_of_the_hubs_cache(package, tmp_path):
    """There files are links to blobs beside the snapshots."""
    cache = tmp_path / "models--org--name"
    inside = cache / "snapshots" / "0123abcd" / "broken.mlpackage"
    (cache / "blobs").mkdir(parents=True)
    for number, path in enumerate(sorted(each for each in package.rglob("*") if each.is_file())):
        blob, link = cache / "blobs" / str(number), inside / path.relative_to(package)
        shutil.copyfile(path, blob)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    assert open_package(inside).inputs.keys() == open_package(package).inputs.keys()


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_refuses_a_specification_cut_short(package, share):
    data = specification(package).read_bytes()
    specification(package).write_bytes(data[: int(len(data) * share)])
    assert "model.mlmodel is no model: cut short, damaged, or nested too deeply" in refused(package)


def test_refuses_a_missing_specification(package):
    specification(package).unlink()
    assert "lacks its model, Data/com.apple.CoreML/model.mlmodel" in refused(package)


def test_refuses_types_nested_too_deeply(package):
    def deepen(message, block):
        of = find(block, "mul").outputs[0].type
        for _ in range(300):
            of = of.listType.type
        of.tensorType.rank = 0

    edit(package, deepen)
    assert "nested too deeply" in refused(package)


def test_refuses_a_missing_weight_file(package):
    (package / "Data" / "com.apple.CoreML" / "weights" / "weight.bin").unlink()
    assert "broken.mlpackage lacks its weight file Data/com.apple.CoreML/weights/weight.bin" in refused(package)


def test_refuses_a_weight_file_cut_short(package):
    weights = package / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"
    weights.write_bytes(weights.read_bytes()[:-20])
    assert "weight.bin: the metadata at" in refused(package)


def const(block, change):
    """Change the value of the first constant in the weight file."""
    values = (each.attributes["val"] for each in block.operations if each.type == "const")
    change(next(value for value in values if value.WhichOneof("value") == "blobFileValue"))


def set_offset(offset):
    return lambda message, block: const(block, lambda value: setattr(value.blobFileValue, "offset", offset))


def set_file(name):
    return lambda message, block: const(block, lambda value: setattr(value.blobFileValue, "fileName", name))


def set_kind(kind):
    def change(message, block):
        find(block, "mul").type = kind

    return change


def set_length(message, block):
    find(block, "mul").outputs[0].type.tensorType.dimensions[0].constant.size = 2**40


def set_shape(message, block):
    find(block, "mul").outputs[0].type.tensorType.dimensions[0].constant.size = 4


def add_block(message, block):
    operation = find(block, "softmax")
    operation.type = "cond"
    operation.blocks.add()


def use_unknown(message, block):
    find(block, "mul").inputs["x"].arguments[0].name = "nowhere"


def define_twice(message, block):
    find(block, "add").outputs[0].name = find(block, "mul").outputs[0].name


def drop_parameter(message, block):
    del find(block, "mul").inputs["y"]


def add_parameter(message, block):
    find(block, "mul").inputs["z"].CopyFrom(find(block, "mul").inputs["y"])


def compute_parameter(message, block):
    find(block, "softmax").inputs["axis"].arguments[0].name = "scaled"


def add_state(message, block):
    message.description.state.add().name = "memory"


def make_picture(message, block):
    message.description.input[0].type.imageType.width = 3


def make_pipeline(message, block):
    message.pipeline.names.append("one")


def rename_input(message, block):
    message.description.input[0].name = "elsewhere"


def retype_input(message, block):
    message.description.input[0].type.multiArrayType.dataType = 65552


def rename_output(message, block):
    message.description.output[0].name = "elsewhere"


def shorten_constant(message, block):
    for each in block.operations:
        if each.type == "const" and each.attributes["val"].WhichOneof("value") == "immediateValue":
            each.attributes["val"].immediateValue.tensor.ints.ClearField("values")
            return


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_offset(2**40), "ends before the metadata at 1099511627776"),
        (set_offset(65), "the metadata at 65 cannot be"),
        (set_offset(128), "the metadata at 128 begins with"),
        (
            set_file("@model_path/weights/other.bin"),
            "lacks its weight file Data/com.apple.CoreML/weights/other.bin",
        ),
        (set_file("/etc/passwd"), "weight file '/etc/passwd' is not below @model_path/"),
        (set_kind("frobnicate"), "operation frobnicate of 'scaled' is not known"),
        (set_kind("frob\n\x1b[31m"), "operation frob??[31m of 'scaled' is not known"),
        (set_kind("constexpr_frobnicate"), "operation constexpr_frobnicate of 'scaled' needs one constant as 'x'"),
        (set_length, "'scaled' of operation mul is fp32 [1099511627776, 4]: more than 2147483648 elements"),
        (add_block, "operation cond of 'weights' is control flow, which is not supported"),
        (use_unknown, "operation mul of 'scaled' uses 'nowhere', which is not there"),
        (define_twice, "'scaled' is defined twice"),
        (drop_parameter, "operation mul of 'scaled' lacks its parameter 'y'"),
        (add_parameter, "operation mul of 'scaled' has a parameter 'z', which is not known"),
        (compute_parameter, "operation softmax of 'weights' has a parameter 'axis' that is no constant"),
        (add_state, "state 'memory' is not supported"),
        (make_picture, "input 'x0' is of type image; only arrays are supported"),
        (make_pipeline, "a model of type pipeline; only ML programs are supported"),
        (rename_input, "input 'elsewhere' is not in both description and program"),
        (retype_input, "input 'x0' is float16 [3, 4] in the description, fp32 [3, 4] in the program"),
        (rename_output, "output 'elsewhere' is not in the program"),
        (shorten_constant, "has 0 elements, declared int32 []"),
    ],
)
def test_refuses_a_broken_program(package, change, message):
    edit(package, change)
    found = refused(package)
    assert message in found
    assert "broken.mlpackage" in found


def test_refuses_a_leading_out_weight_file(package):
    edit(package, set_file("@model_path/../../../outside.bin"))
    assert "leads out of the package" in refused(package, UnsafeError)


def test_refuses_a_result_that_is_not_as_declared(package):
    edit(package, set_shape)
    message = refused(package, inputs=[INPUT])
    assert message == f"{package}: operation mul of 'scaled' gives shape [3, 4], declared fp32 [4, 4]"


def test_refuses_a_function_that_is_not_there(saved):
    with pytest.raises(BuildError, match="no function 'other'; there is main alone"):
        open_package(saved, function="other")


def test_opens_the_functions_of_a_model_with_several(tmp_path, saved):
    description = ct.utils.MultiFunctionDescriptor()
    _, path = save(tmp_path, lambda x: mb.mul(x=x, y=2.0, name="double"), [INPUT], "iOS18")
    description.add_function(str(path), "main", "double")
    description.add_function(str(saved), "main", "weigh")
    description.default_function_name = "double"
    ct.utils.save_multifunction(description, str(tmp_path / "several.mlpackage"))
    double = open_package(tmp_path / "several.mlpackage")
    assert np.array_equal(run(double, [INPUT])[0], INPUT * 2)
    weigh = open_package(tmp_path / "several.mlpackage", function="weigh")
    assert np.array_equal(run(weigh, [INPUT])[0], run(open_package(saved), [INPUT])[0])
