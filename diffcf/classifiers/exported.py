"""Classifiers that come as a `.pt2` file of torch.export, read without running anything that the file brings along.

`torch.export.load` unpickles sample inputs, custom objects and some weights, loads compiled code that lies in the
archive, and evaluates text of the program: names and guards become Python source, shapes go through sympy. A file from
elsewhere could run anything. So the archive is written anew in memory before it is loaded, with what a classifier needs
and nothing else: raw tensors, and a program whose names are identifiers, whose operators are those of ATen and whose
shapes are plain arithmetic. Sample inputs, guards and debugging metadata are left out; what else is found is refused.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any, cast

import torch
from einops import repeat
from torch import Tensor, fx, nn

from diffcf.classifiers.network import two_logits
from diffcf.errors import CheckpointError

NAME = re.compile(r"[\w.]+")
OPERATOR = re.compile(  # from_file reads and makes files; names in underscores would lead away from ATen
    r"torch\.ops\.aten\.(?!__|from_file\b)\w+\.(?!__)\w+"
    r"|_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|neg|eq|ne|le|lt|ge|gt)"
)
SYMBOL = re.compile(r"Symbol\('[a-z]+\d*'(, \w+=(True|False))*\)")
ARITHMETIC = re.compile(
    r"(Integer|Add|Mul|Pow|Mod|PythonMod|FloorDiv|CeilDiv|CleanDiv|Max|Min|[a-z]\d+|\d+|[-+*/(), ])*"
)
TEXT = re.compile(r"[\w .,+>*-]*")
NUMBER = re.compile(r"-?Infinity|NaN")  # what JSON itself cannot say
TREE_WORDS = {"builtins.tuple", "builtins.list", "builtins.dict", "null", "[]"}
PROBABILITIES = ("sigmoid", "softmax", "log_softmax", "log_sigmoid", "safe_softmax")
FIXED = {"archive_format": b"pt2", "archive_version": b"0", "byteorder": b"little", ".data/version": b"3\n"}
PROGRAM, SAMPLES = "models/model.json", "data/sample_inputs/model.pt"
TENSORS = {"weights": re.compile(r"weight_\d+"), "constants": re.compile(r"tensor_\d+")}


class ExportedNetwork(nn.Module):
    """An exported program over pictures "b c h w" as a network with a linear head, where it ends in one.

    A single logit z, as trained with a sigmoid, becomes the two (0, z), whose softmax is the sigmoid of z.

    batch: what the program was exported for; None takes any. Other batches are cut up and filled, sample by sample the
    same. shape: (c, h, w), None where it takes any.
    """

    def __init__(self, program: torch.export.ExportedProgram, source: str) -> None:
        super().__init__()
        _check_inference(program, source)
        self.batch, self.shape, dtype = _input(program, source)
        if dtype != torch.float32:
            raise CheckpointError(f"{source} takes {dtype}; export a model that takes float32.")
        module = cast(fx.GraphModule, program.module(check_guards=False))
        _check_logits(module, source)
        head = _split_head(module)
        self.head = head if head is None else two_logits(head)
        self.module = module

    def features(self, picture: Tensor) -> Tensor:
        """What `head` reads, "b c h w" -> "b f"."""
        return self._run(picture)

    def forward(self, picture: Tensor) -> Tensor:
        """Logits, "b c h w" -> "b k"."""
        found = self._run(picture)
        logits = found if self.head is None else self.head(found)
        return torch.cat([torch.zeros_like(logits), logits], 1) if logits.shape[1:] == (1,) else logits

    def _run(self, picture: Tensor) -> Tensor:
        if self.batch is None or len(picture) == self.batch:
            return self.module(picture)
        found = []
        for part in picture.split(self.batch):
            spare = self.batch - len(part)
            filled = torch.cat([part, repeat(part[-1], "c h w -> n c h w", n=spare)]) if spare else part
            found.append(self.module(filled)[: len(part)])
        return torch.cat(found)


def load_exported(path: Path) -> ExportedNetwork:
    """Read a `.pt2` file; nothing that it brings along is unpickled or run.

    Errors: CheckpointError where the file is no such archive, is of a version that this torch does not read, holds more
    than tensors and ATen operators, was exported in training mode, or is no function of one picture.
    """
    if not path.is_file():
        raise CheckpointError(f"no export at {path}; the card's `weights` names the .pt2 file beside it.")
    clean = rewritten(path.read_bytes(), str(path))
    try:
        program = torch.export.load(clean)
    except Exception as error:  # torch raises many kinds
        raise CheckpointError(
            f"{path} does not load with torch {torch.__version__} ({type(error).__name__}: {error}); export the model "
            "again with this version."
        ) from error
    for node in program.graph.nodes:
        fine = isinstance(node.target, torch._ops.OpOverload) or getattr(node.target, "__module__", "") == "_operator"
        _require(node.op != "call_function" or fine, "operator", str(node.target), str(path))
    return ExportedNetwork(program, str(path))


def rewritten(data: bytes, source: str) -> io.BytesIO:
    """An archive with the program and the tensors of `data`, checked, and nothing else of it.

    Errors: CheckpointError that says what was found instead.
    """
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
        names = archive.namelist()
        root = next((name.removesuffix("archive_format") for name in names if name.endswith("/archive_format")), None)
        if root is None or len(set(names)) < len(names):
            raise CheckpointError(
                f"{source} is no archive of torch.export.save, or of a version before 2.8; export the model again."
            )
        content = {name.removeprefix(root): archive.read(name) for name in names if name.startswith(root)}
        files: dict[str, bytes] = {**FIXED, SAMPLES: b""}
        files[PROGRAM] = json.dumps(_program(_json(content, PROGRAM, source), source)).encode()
        for kind, pattern in TENSORS.items():
            config = f"data/{kind}/model_{kind}_config.json"
            tensors = _tensors(_json(content, config, source), pattern, source)
            files[config] = json.dumps(tensors).encode()
            for entry in tensors["config"].values():
                name = f"data/{kind}/{entry['path_name']}"
                if name not in content:
                    raise CheckpointError(f"{source} lacks {name}; the file is damaged.")
                files[name] = content[name]
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, AttributeError, TypeError, KeyError) as error:
        raise CheckpointError(f"{source} is no readable export ({type(error).__name__}: {error}).") from error
    clean = io.BytesIO()
    with zipfile.ZipFile(clean, "w", zipfile.ZIP_STORED) as target:
        for name, value in files.items():
            target.writestr(f"model/{name}", value)
    clean.seek(0)
    return clean


def _json(content: dict[str, bytes], name: str, source: str) -> Any:
    if name not in content:
        raise CheckpointError(
            f"{source} lacks {name}: expected what torch.export.save writes, not compiled or packaged models."
        )
    return json.loads(content[name])


def _program(program: dict[str, Any], source: str) -> dict[str, Any]:
    module = program["graph_module"]
    module["module_call_graph"] = [entry for entry in module["module_call_graph"] if entry["fqn"] == ""]
    module["treespec_namedtuple_fields"] = {}
    program["guards_code"] = []
    return _checked(program, "", source)


def _tensors(config: dict[str, Any], pattern: re.Pattern[str], source: str) -> dict[str, Any]:
    for name, entry in config["config"].items():
        if entry["use_pickle"] or not pattern.fullmatch(entry["path_name"]):
            raise CheckpointError(
                f"{source}: {name} is stored as a pickled object, which could run any code; export a model whose "
                "parameters and buffers are plain dense tensors."
            )
    return _checked(config, "", source)


def _checked(value: Any, key: str, source: str) -> Any:
    """The same value without debugging metadata. Errors: CheckpointError for text that could be more than a name."""
    if isinstance(value, dict):
        for name in value:
            _require(NAME.fullmatch(name), "name", name, source)
        return {name: {} if name == "metadata" else _checked(item, name, source) for name, item in value.items()}
    if isinstance(value, list):
        return [_checked(item, key, source) for item in value]
    if not isinstance(value, str):
        return value
    if key == "target":
        _require(OPERATOR.fullmatch(value), "operator", value, source)
    elif key == "expr_str":
        _require(ARITHMETIC.fullmatch(SYMBOL.sub("0", value)), "shape", value, source)
    elif key in ("in_spec", "out_spec"):
        _require(_tree_words(json.loads(value)) <= TREE_WORDS, "structure of inputs or outputs", value, source)
    elif key in ("as_string", "torch_version"):
        _require(TEXT.fullmatch(value), "text", value, source)
    elif key in ("as_float", "as_floats"):
        _require(NUMBER.fullmatch(value), "number", value, source)
    else:
        _require(not value or NAME.fullmatch(value), "name", value, source)
    return value


def _tree_words(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set().union(*(_tree_words(item) for item in value.values()))
    if isinstance(value, list):
        return set().union(*(_tree_words(item) for item in value))
    return {value} if isinstance(value, str) else set()


def _require(fine: Any, what: str, value: str, source: str) -> None:
    if not fine:
        raise CheckpointError(
            f"{source}: the {what} {value[:80]!r} is not what a classifier of ATen operators holds. Export the plain "
            "network in eval mode, without autocast, no_grad or compiled parts inside; it must return logits alone."
        )


def _check_inference(program: torch.export.ExportedProgram, source: str) -> None:
    training = [
        node.name
        for node in program.graph.nodes
        if isinstance(node.target, torch._ops.OpOverload)
        for position, argument in enumerate(node.target._schema.arguments)
        if argument.name in ("training", "train")
        and (node.args[position] if position < len(node.args) else node.kwargs.get(argument.name)) is True
    ]
    signature = program.graph_signature
    if training or signature.buffers_to_mutate or signature.user_inputs_to_mutate:
        where = ", ".join(training[:3]) or "it changes its own buffers"
        raise CheckpointError(
            f"{source} was exported in training mode ({where}): call model.eval() before torch.export.export."
        )


def _check_logits(module: fx.GraphModule, source: str) -> None:
    (output,) = module.graph.find_nodes(op="output")
    (last,) = output.all_input_nodes
    operator = str(last.target).removeprefix("aten.").split(".")[0].strip("_")
    if operator in PROBABILITIES:
        raise CheckpointError(
            f"{source} ends in {operator}, so it returns probabilities or their logarithms: expected logits. Export "
            "the network without that layer."
        )


def _input(
    program: torch.export.ExportedProgram, source: str
) -> tuple[int | None, tuple[int | None, ...], torch.dtype]:
    inputs, outputs = program.graph_signature.user_inputs, program.graph_signature.user_outputs
    values = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and node.name in inputs]
    if len(values) != 1 or len(outputs) != 1 or not isinstance(values[0], Tensor) or values[0].ndim != 4:
        raise CheckpointError(
            f"{source} takes {len(inputs)} input(s) and returns {len(outputs)} output(s): expected one picture "
            "(b, s * c, h, w) and logits (b, k)."
        )
    batch, *shape = (side if isinstance(side, int) else None for side in values[0].shape)
    return batch, tuple(shape), values[0].dtype


def _split_head(module: fx.GraphModule) -> nn.Linear | None:
    """Cut the final linear layer off, so that the module returns what it read; None, and nothing cut, without one."""
    graph = module.graph
    (output,) = graph.find_nodes(op="output")
    (last,) = output.all_input_nodes
    read, weight, bias = _linear(module, last)
    if read is None or weight is None or len(last.users) > 1:
        return None
    k, f = weight.shape
    head = nn.Linear(f, k, bias=bias is not None)
    with torch.no_grad():
        head.weight.copy_(weight)
        if bias is not None:
            head.bias.copy_(bias)
    output.replace_input_with(last, read)
    graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
    return head


def _linear(module: fx.GraphModule, node: fx.Node) -> tuple[fx.Node | None, Tensor | None, Tensor | None]:
    """What a linear layer reads, with its weight "k f" and bias "k"; (None, None, None) for any other node."""
    nothing = (None, None, None)
    aten = torch.ops.aten
    arguments: Any = [*node.args, None][:3]
    if node.target is aten.linear.default:
        read, weight, bias = arguments
    elif node.target is aten.addmm.default and not node.kwargs:  # as decomposed exports write it
        bias, read, turned = arguments
        if turned.target not in (aten.permute.default, aten.t.default):
            return nothing
        weight = turned.args[0]
    else:
        return nothing
    values = [None if one is None else _constant(module, one) for one in (weight, bias)]
    flat = isinstance(read, fx.Node) and read.meta["val"].ndim == 2
    if not flat or values[0] is None or (bias is not None and values[1] is None):
        return nothing
    return read, values[0], values[1]


def _constant(module: fx.GraphModule, node: fx.Node) -> Tensor | None:
    if node.op != "get_attr":
        return None
    value: Any = module
    for name in str(node.target).split("."):
        value = getattr(value, name)
    return value if isinstance(value, Tensor) else None
