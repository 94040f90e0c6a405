"""The example plug-in packages, installed as a user would install them, and plug-ins that misbehave."""

import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qcc.artifact.manifest import Manifest, PluginSpec
from qcc.errors import ArtifactError, ConfigError
from qcc.frontend.export import export_onnx
from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Graph, Stage, Value
from qcc.ir.text import parse
from qcc.ir.types import BATCH, Dyadic, Quant
from qcc.passmgr.context import PassContext
from qcc.passmgr.pipeline import Pipeline
from qcc.passmgr.plugins import make_pass, make_target
from qcc.runtime import load
from qcc.runtime.backend import make_backend
from qcc.verify.interp import evaluate

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
QUICKSTART = EXAMPLES / "quickstart"
PASSES = "fold-batch-norm, canonicalize, calibrate, quantize, power-of-two-scales, bias-correct, dyadic"

Qcc = Callable[..., Any]
Install = Callable[[str, str, str, str], None]


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both example packages installed."""
    folder = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target"]
    packages = [str(EXAMPLES / name) for name in ("plugin_pass", "plugin_target")]
    subprocess.run([*pip, str(folder), *packages], check=True, capture_output=True)
    return folder


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Installs a one-module distribution by hand, as pip would lay it out."""

    def lay_out(distribution: str, entry_points: str, module: str, source: str) -> None:
        site = tmp_path / f"site-{distribution}"
        info = site / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(entry_points)
        (site / f"{module}.py").write_text(source)
        monkeypatch.syspath_prepend(str(site))

    return lay_out


@pytest.fixture
def installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(site))


QUANTIZED = """\
graph @g quantized(%x: Nx2xf32 qu8<1*2^-8:0>) {
  %w: 3x2xf32 qi8@0<3*2^-9,1*2^-7,5*2^-9:0> = constant() {"value": [[0.7, -0.1], [0.5, 0.2], [1.2, 0.1]]}
  %b: 3xf32 = constant() {"value": [0.0, 0.0, 0.0]}
  %y: Nx3xf32 qi32<1*2^-16:0> = dense(%x, %w, %b)
  return %y
}
"""


def weight_scales(graph: Graph) -> list[float]:
    quant = next(o.result.type.quant for o in graph.ops if o.result.name == "w")
    assert quant is not None
    return [float(scale) for scale in quant.scale]


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("toward", "scales"),
    [("above", [2.0**-7, 2.0**-7, 2.0**-6]), ("nearest", [2.0**-7, 2.0**-7, 2.0**-7])],
)
def test_power_of_two_pass_changes_weight_grids_only(toward: str, scales: list[float]) -> None:
    before = parse(QUANTIZED)
    after = Pipeline((make_pass("power-of-two-scales", {"toward": toward}),)).run(before, PassContext())
    assert weight_scales(after) == scales
    assert [v.type for v in after.outputs] == [v.type for v in before.outputs]


@pytest.mark.usefixtures("installed")
def test_power_of_two_pass_rejects_an_unknown_direction() -> None:
    with pytest.raises(ConfigError, match=r"power-of-two-scales.*toward"):
        make_pass("power-of-two-scales", {"toward": "below"})


def grid(zero_point: int, *, signed: bool = False, bits: int = 8) -> Quant:
    return Quant(bits, signed, (Dyadic(1, 4),), zero_point)


def requantization(b: GraphBuilder, channels: int, seed: int) -> tuple[Value, Value]:
    rng = np.random.default_rng(seed)
    m = b.constant(rng.integers(1 << 18, 1 << 20, channels, np.int32), "m")
    return m, b.constant(rng.integers(-(1 << 28), 1 << 28, channels, np.int64), "c")


def every_listed_op() -> Graph:
    """A graph with every operation of the listing target: groups, dilation, zero points, a residual."""
    rng = np.random.default_rng(7)
    b = GraphBuilder("every", Stage.INTEGER)
    clamp: dict[str, Any] = {"shift": 26, "qmin": 0, "qmax": 255}
    x = b.input("x", (BATCH, 4, 9, 9), "u8", grid(7))
    w = b.constant(rng.integers(-127, 128, (6, 2, 3, 2), np.int8), "w")
    m, c = requantization(b, 6, 1)
    window: dict[str, Any] = {"strides": (2, 1), "pads": (1, 0, 1, 1), "dilations": (1, 2), "groups": 2}
    y = b.op("iconv2d", [x, w, m, c], quant=grid(3), **window, **clamp)
    depthwise = b.constant(rng.integers(-127, 128, (6, 1, 3, 3), np.int8), "w")
    plain: dict[str, Any] = {"strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1), "groups": 6}
    m, c = requantization(b, 6, 2)
    y = b.op("iconv2d", [y, depthwise, m, c, y, m], quant=grid(9), **plain, **clamp)
    table = b.constant(rng.integers(0, 256, (6, 256), np.uint8), "table")
    y = b.op("ilookup", [y, table], quant=grid(9))
    pool: dict[str, Any] = {"kernel": (2, 3), "strides": (1, 2), "pads": (1, 1, 0, 1), "dilations": (1, 1)}
    y = b.op("max_pool2d", [y], quant=y.type.quant, **pool)
    one, offset = (b.constant(np.array([v], t)) for v, t in ((1 << 22, np.int32), (1 << 25, np.int64)))
    y = b.op("isum_pool2d", [y, one, offset], quant=grid(0), **pool, **clamp)
    y = b.op("ilinear", [offset, y, one, y, one], quant=grid(5, signed=True), shift=26, qmin=-128, qmax=127)
    y = b.op("transpose", [y], quant=y.type.quant, perm=(0, 2, 3, 1))
    y = b.op(
        "ireduce_sum",
        [y, one, offset],
        quant=grid(5, signed=True),
        axes=(1,),
        keepdims=False,
        shift=26,
        qmin=-128,
        qmax=127,
    )
    _, columns, channels = y.type.shape
    y = b.op("reshape", [y], quant=y.type.quant, shape=(BATCH, columns * channels))
    w = b.constant(rng.integers(-127, 128, (5, columns * channels), np.int8), "w")
    m, c = requantization(b, 5, 3)
    y = b.op("idense", [y, w, m, c], quant=grid(0, signed=True, bits=32), shift=10, qmin=-(1 << 31), qmax=(1 << 31) - 1)
    return b.graph([y])


def listing_manifest() -> Manifest:
    plain = {"qcc_version": "0", "model": "m", "source_sha256": "0" * 64, "inputs": (), "outputs": (), "pipeline": ()}
    return Manifest.model_validate({**plain, "target": PluginSpec(name="listing"), "backend": "listing"})


@pytest.mark.usefixtures("installed")
def test_listing_agrees_with_the_reference_on_every_op_it_has(tmp_path: Path) -> None:
    graph = every_listed_op()
    target = make_target("listing")
    assert target.capabilities.ops == frozenset(o.kind for o in graph.ops) - {"constant"}
    (path,) = target.build(graph, PassContext(), tmp_path)
    inputs = {"x": np.random.default_rng(0).integers(0, 256, (3, 4, 9, 9), np.uint8)}
    expected = evaluate(graph, inputs)
    actual = make_backend(listing_manifest(), {f"device/{path.name}": path}, 1).run(inputs, 3)
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(actual[name], array)
        assert actual[name].dtype == array.dtype
        assert len(np.unique(array)) > 5


@pytest.mark.usefixtures("installed")
def test_listing_is_the_same_bytes_twice(tmp_path: Path) -> None:
    texts = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (path,) = make_target("listing").build(every_listed_op(), PassContext(), tmp_path / name)
        texts.append(path.read_bytes())
    assert texts[0] == texts[1]


@pytest.mark.usefixtures("installed")
def test_listing_backend_refuses_an_artifact_without_a_program() -> None:
    with pytest.raises(ArtifactError, match=r"program\.json"):
        make_backend(listing_manifest(), {}, 1)


@pytest.mark.usefixtures("installed")
def test_packages_register_their_plug_ins() -> None:
    owners = {
        (ep.group, ep.name): ep.dist.name
        for group in ("qcc.passes", "qcc.targets", "qcc.backends")
        for ep in entry_points(group=group)
        if ep.dist is not None
    }
    assert owners["qcc.passes", "power-of-two-scales"] == "qcc-power-of-two"
    assert owners["qcc.targets", "listing"] == owners["qcc.backends", "listing"] == "qcc-listing"


@pytest.mark.usefixtures("installed")
def test_command_line_lists_the_plug_ins(run_qcc: Qcc) -> None:
    assert '"power-of-two-scales"' in run_qcc("passes", "--json").out
    assert "JSON listing" in run_qcc("targets", "listing").out


def compile_digits(run_qcc: Qcc, output: Path, target: str) -> Any:
    return run_qcc("compile", "-c", QUICKSTART / "qcc.yaml", "-t", target, "--pipeline", PASSES, "-o", output)


@pytest.mark.usefixtures("installed")
def test_digits_on_the_listing_target_are_bit_identical_to_the_reference(run_qcc: Qcc, tmp_path: Path) -> None:
    codes = {}
    images = np.load(QUICKSTART / "evaluation.npz")["image"][:32]
    for target in ("listing", "ref"):
        result = compile_digits(run_qcc, tmp_path / f"{target}.qcc", target)
        assert result.code == 0, result.err
        session = load(tmp_path / f"{target}.qcc")
        assert any(spelling.startswith("power-of-two-scales") for spelling in session.manifest.pipeline)
        codes[target] = session.run({"image": images}, raw=True)["logits"]
    np.testing.assert_array_equal(codes["listing"], codes["ref"])


SOFTMAX = """\
graph @g float(%x: Nx4xf32) {
  %y: Nx4xf32 = softmax(%x) {"axis": 1}
  return %y
}
"""


@pytest.mark.usefixtures("installed")
def test_listing_refuses_a_model_with_an_operation_it_does_not_have(run_qcc: Qcc, tmp_path: Path) -> None:
    onnx.save(export_onnx(parse(SOFTMAX)), tmp_path / "softmax.onnx")
    np.savez(tmp_path / "data.npz", x=np.linspace(-1, 1, 32, dtype=np.float32).reshape(8, 4))
    result = run_qcc(
        *("compile", tmp_path / "softmax.onnx", "-d", tmp_path / "data.npz", "-t", "listing"),
        *("--pipeline", PASSES, "-o", tmp_path / "softmax.qcc"),
    )
    assert result.code == 6
    assert "listing" in result.complaint
    assert "isoftmax" in result.complaint
    assert not (tmp_path / "softmax.qcc").exists()


PASS = """\
from typing import ClassVar
from qcc.ir.graph import Stage
from qcc.passmgr.base import Pass

class Mine(Pass):
    name: ClassVar[str] = "mine"
    accepts: ClassVar[Stage] = Stage.FLOAT
    yields: ClassVar[Stage] = Stage.FLOAT

    def run(self, graph, ctx):
        return graph.oops
"""


def test_a_pass_that_raises_is_one_line(run_qcc: Qcc, install: Install, tmp_path: Path) -> None:
    install("raising", "[qcc.passes]\nmine = raising_pass:Mine\n", "raising_pass", PASS)
    command = ("compile", QUICKSTART / "digits.onnx", "-t", "ref", "-o", tmp_path / "out.qcc")
    result = run_qcc(*command, "--pipeline", "canonicalize, mine")
    assert result.code == 4
    assert "'mine' raised AttributeError" in result.complaint
    assert "in pass 2/2" in result.complaint
    assert not (tmp_path / "out.qcc").exists()


def test_a_plug_in_that_does_not_import_is_one_line(run_qcc: Qcc, install: Install) -> None:
    install("broken", "[qcc.passes]\nmine = broken_pass:Mine\n", "broken_pass", "import no_such_module\n")
    result = run_qcc("passes", "mine")
    assert result.code == 4
    assert "'mine' of broken does not load: ModuleNotFoundError" in result.complaint


def test_two_packages_with_one_name_are_an_error_that_names_both(run_qcc: Qcc, install: Install) -> None:
    for name in ("first", "second"):
        install(name, f"[qcc.passes]\nmine = {name}_pass:Mine\n", f"{name}_pass", PASS)
    result = run_qcc("passes")
    assert result.code == 4
    assert result.complaint == "qcc: qcc.passes: 'mine' is provided by first and second"


def test_a_package_cannot_take_the_name_of_a_built_in(run_qcc: Qcc, install: Install, tmp_path: Path) -> None:
    install("impostor", "[qcc.targets]\nref = impostor_target:Mine\n", "impostor_target", PASS)
    result = compile_digits(run_qcc, tmp_path / "out.qcc", "ref")
    assert result.code == 4
    assert result.complaint == "qcc: qcc.targets: 'ref' is provided by impostor and qcc"


def test_a_class_that_is_no_target_is_refused(run_qcc: Qcc, install: Install) -> None:
    install("confused", "[qcc.targets]\nmine = confused_target:Mine\n", "confused_target", PASS)
    result = run_qcc("targets", "mine")
    assert result.code == 4
    assert "not a subclass of qcc.passmgr.target.Target" in result.complaint
