"""A graph without its weights takes the next weights, and gives what an export would."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from tests.conftest import learnable_rows

from autoglm.errors import ModelError
from autoglm.modeling import export, kept_graphs
from autoglm.modeling.auto_model import load_model
from autoglm.modeling.modeling_autoglm import AutoGLMForSequenceClassification

SETTINGS = {"attention": "sdpa", "head": "linear", "pooling": "auto"}
TEXTS = [row["text"] for row in learnable_rows(8)]


def toy(backbone: Path, **more: Any) -> AutoGLMForSequenceClassification:
    structure = {"structure": {"num_layers": 1}}
    return load_model(backbone, SETTINGS | structure | more, labels=["money", "sport"])


def exported(model: Any, backbone: Path, target: Path, graphs: Path | None) -> export.Exported:
    return export.export_folder(
        model, backbone, target, labels=["money", "sport"], max_length=32, pad_id=0, inputs=TEXTS,
        graphs=graphs,
    )  # fmt: skip


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A line per work of torch's exporter."""
    lines, real = [], torch.onnx.export

    def counted(*args: Any, **kwargs: Any) -> Any:
        lines.append("export")
        return real(*args, **kwargs)

    monkeypatch.setattr(torch.onnx, "export", counted)
    return lines


def test_logits_that_are_large_may_differ_by_more_and_a_wrong_graph_is_still_refused(
    tmp_path: Path, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = toy(tiny_backbone)
    with torch.no_grad():
        model.classifier.weight.normal_(std=1e5)
        said = [export._said_of(model, [row], 0)[0] for row in ([2, 5, 6], [2, 7, 8, 9])]
    assert max(abs(logits).max() for logits in said) > 1e4, "float32 keeps no 1e-4 of these"
    assert exported(model, tiny_backbone, tmp_path / "large", None).parity <= export.MAX_PARITY
    real = export._said_of
    monkeypatch.setattr(export, "_said_of", lambda *asked: [1.001 * x for x in real(*asked)])
    with pytest.raises(ModelError, match="the graph's logits differ"):
        exported(model, tiny_backbone, tmp_path / "wrong", None)
    assert not (tmp_path / "wrong").exists()


def test_other_weights_of_one_structure_need_no_exporter_and_give_its_bytes(
    tmp_path: Path, tiny_backbone: Path, exports: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, graphs = toy(tiny_backbone), tmp_path / "graphs"
    asked, real = [], export._said_of

    def counted(model: Any, rows: Any, pad_id: int) -> Any:
        asked.append(len(rows))
        return real(model, rows, pad_id)

    monkeypatch.setattr(export, "_said_of", counted)
    monkeypatch.setattr(export, "ROWS_OF_KEPT", 3)
    exported(model, tiny_backbone, tmp_path / "first", graphs)
    assert exports == ["export"]
    (kept,) = graphs.glob("*.onnx")
    good = kept.read_bytes()
    with torch.no_grad():  # two matrices and two vectors that are equal: no constant may be shared
        layer = model.backbone.encoder.layer[0].attention.self
        for one in (layer.query, layer.key):
            one.weight.fill_(0.1)
            one.bias.fill_(0.3)
        model.classifier.weight.normal_()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    done = exported(model, tiny_backbone, tmp_path / "second", graphs)
    assert exports == ["export"]
    assert done.parity <= export.MAX_PARITY
    graph = (tmp_path / "second" / "model.onnx").read_bytes()
    read = onnx.load_from_string(graph)
    assert graph == read.SerializeToString(deterministic=True), "as protobuf writes it"
    assert graph != (tmp_path / "first" / "model.onnx").read_bytes()
    assert str(Path(torch.__file__).parents[1]).encode() not in graph, "paths of a machine"

    spoil(kept)  # it does not answer alike: the graph is made again, and of the same bytes
    done = exported(model, tiny_backbone, tmp_path / "third", graphs)
    assert exports == ["export", "export"]
    assert done.parity <= export.MAX_PARITY
    assert (tmp_path / "third" / "model.onnx").read_bytes() == graph
    assert kept.read_bytes() == good
    assert asked == [8, 3, 3, 8], "of a graph that was proved before only the weights are new"
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())

    kept.write_bytes(b"")
    other = toy(tiny_backbone, head="mlp")
    assert export._structure(other) != export._structure(model) == kept.stem
    assert kept_graphs.find(graphs, kept.stem) is None


def spoil(kept: Path) -> None:
    graph = onnx.load(kept)
    node = next(node for node in graph.graph.node if node.op_type == "Gelu")
    node.op_type = "Relu"
    del node.attribute[:]
    onnx.save(graph, kept)


def test_constants_that_are_more_than_a_weight_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnx import TensorProto, helper, numpy_helper

    model = torch.nn.Linear(2, 3)
    weight, bias = (t.detach().numpy() for t in model.parameters())

    def graph(*constants: Any) -> Any:
        named = [numpy_helper.from_array(c, name=f"c{i}") for i, c in enumerate(constants)]
        out = helper.make_tensor_value_info("c0", TensorProto.FLOAT, None)
        return helper.make_model(helper.make_graph([], "g", [], [out], named))

    kept = kept_graphs.without_weights(graph(weight.T, bias), model)
    assert [c.raw_data for c in kept.graph.initializer] == [b"", b""]
    other = torch.nn.Linear(2, 3)
    kept_graphs.write(kept, other, tmp_path / "other.onnx")
    filled = onnx.load(tmp_path / "other.onnx").graph.initializer
    assert numpy_helper.to_array(filled[0]).tolist() == other.weight.T.tolist()
    assert kept_graphs.without_weights(graph(weight * 2, bias), model) is None
    assert kept_graphs.without_weights(graph(bias), torch.nn.Linear(1, 1, bias=False)) is None
    again = kept_graphs.without_weights(graph(weight, bias), model)
    with pytest.raises(ValueError, match="no weight of shape"):
        kept_graphs.write(again, torch.nn.Linear(2, 4), tmp_path / "another.onnx")
    with pytest.raises(ValueError, match="is torch.float16, the graph has float32"):
        kept_graphs.write(again, torch.nn.Linear(2, 3).half(), tmp_path / "another.onnx")
    size = (tmp_path / "other.onnx").stat().st_size
    monkeypatch.setattr(kept_graphs, "MOST_BYTES", size - 1)
    with pytest.raises(ModelError, match="larger than an ONNX file can be"):
        kept_graphs.write(kept, other, tmp_path / "another.onnx")
    assert not (tmp_path / "another.onnx").exists()
    assert not kept_graphs.can_be_kept(torch.nn.GRU(2, 2))


def test_the_oldest_graphs_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnx import ModelProto

    monkeypatch.setattr(kept_graphs, "GRAPHS_KEPT", 2)
    for key in "abc":
        kept_graphs.keep(tmp_path, key, ModelProto())
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["b", "c"]


def test_a_structure_is_the_same_in_whatever_order_its_config_was_written(
    tmp_path: Path, tiny_backbone: Path, exports: list[str]
) -> None:
    """As of a backbone and of a model that was exported from it: its config is written sorted."""
    said = json.loads((tiny_backbone / "config.json").read_text())
    said["position_embedding_type"] = "absolute"  # a key that transformers passes on as it stands
    graphs, orders = tmp_path / "graphs", []
    for name, keys in (("first", sorted(said)), ("second", sorted(said, reverse=True))):
        backbone = tmp_path / f"backbone-{name}"
        shutil.copytree(tiny_backbone, backbone)
        (backbone / "config.json").write_text(json.dumps({key: said[key] for key in keys}))
        model = toy(backbone)
        orders.append(list(model.config.to_dict()["backbone_config"]))
        exported(model, backbone, tmp_path / name, graphs)
    assert orders[0] != orders[1], "else this shows nothing"
    assert exports == ["export"]
