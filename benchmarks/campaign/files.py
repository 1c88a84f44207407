"""Hostile files of weights and configs, made by rule: each is read, or refused in a sentence that names it."""

import json
import os
import random
import shutil
import socket
import struct
import time
from functools import partial
from pathlib import Path

import msgpack
import numpy as np

from benchmarks.campaign import damage
from benchmarks.campaign.ill_archives import ill_archive, ill_npy, npy, packed
from benchmarks.campaign.ill_pickles import ill_pickle, state_dict
from benchmarks.campaign.ill_values import change_tree, ill_number, ill_text, ill_value
from vidformers import build, pretrained
from vidformers.errors import ConfigError

COUNT, SECONDS, BYTES = 150, 60.0, 2**30
_PROCESSOR_SECONDS = 10.0  # of this process, beyond reading a file, which takes no time here
_MODEL = dict(num_classes=4, frames=2, image_size=16, patch_size=8, width=16, heads=2, depth=2)
_NAMES = ["a", "b", "c", "d"]


def case_set(number: int) -> str:
    return list(SETS)[number % len(SETS)]


def prepare(folder: Path) -> None:
    """Writes one valid checkpoint of Orbax in each of its two forms. All other valid files are made for each case."""
    import orbax.checkpoint as ocp

    for form in (True, False):
        path = folder.absolute() / f"orbax-{form}"
        if not path.exists():
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=form)) as checkpointer:
                checkpointer.save(path, {"params": {"a": np.ones((3, 4), np.float32), "b": np.zeros(4)}, "step": 3})


def run_case(number: int, folder: Path) -> dict:
    """Makes the hostile file of this number, reads it as init.weights, and says how it went."""
    place, rng = folder / "case", random.Random(number)
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    path = SETS[case_set(number)](place, rng, folder)
    before, begun = _peak(reset=True), time.process_time()
    outcome, failed = "read", False
    try:
        pretrained.load(pretrained.Init(weights=str(path)), _make_model(), _NAMES)
    except ConfigError as error:
        names_it = str(place) in str(error)
        is_sentence = names_it and "\n" not in str(error) and len(str(error)) < 2000
        outcome, failed = "refused" if is_sentence else f"no sentence: {str(error)[:200]}", not is_sentence
    seconds, memory = time.process_time() - begun, _peak() - before
    if seconds > _PROCESSOR_SECONDS or memory > BYTES:
        outcome, failed = f"{seconds:.1f} s, {memory >> 20} MiB", True
    return {"outcome": outcome, "failed": failed, "processor_seconds": round(seconds, 2), "mebibytes": memory >> 20}


def _make_model():
    return partial(build, "vit", **_MODEL)


def _peak(reset: bool = False) -> int:
    """Returns the largest memory of this process in bytes, or its present memory if the count starts anew."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def _arrays() -> dict[str, np.ndarray]:
    """Returns the arrays of a small ViT with the names of timm."""
    width, rng = _MODEL["width"], np.random.default_rng(0)
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 5, width),
        "patch_embed.proj.weight": (width, 3, 8, 8),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    for block in (f"blocks.{i}" for i in range(_MODEL["depth"])):
        for name, shape in {
            "norm1": (width,),
            "attn.qkv": (3 * width, width),
            "attn.proj": (width, width),
            "norm2": (width,),
            "mlp.fc1": (4 * width, width),
            "mlp.fc2": (width, 4 * width),
        }.items():
            shapes |= {f"{block}.{name}.weight": shape, f"{block}.{name}.bias": shape[:1]}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def _ill_arrays(rng: random.Random) -> dict[str, np.ndarray]:
    """Returns the arrays with other names, shapes or types, which a file can hold without being damaged."""
    arrays = _arrays()
    for _ in range(rng.randrange(1, 6)):
        name = rng.choice(list(arrays))
        array, kind = arrays[name], rng.randrange(7)
        if kind == 0:
            del arrays[name]
        elif kind == 1:
            number = rng.choice((2, 9, 10**30, "x", "٣"))
            arrays[name.replace("blocks.0", f"blocks.{number}") + rng.choice(("", ".", "\0", "é" * 600))] = array
        elif kind == 2:
            arrays[name] = rng.choice((array.T, array[None], array[..., None], array.ravel(), array.sum(), array[:0]))
        elif kind == 3:
            sizes = (0, 1, 2, 3, 64, 100_000)
            shape = [rng.choice(sizes[:5]) for _ in range(rng.randrange(6))] or [rng.choice(sizes)]
            arrays[name] = np.zeros(shape, np.float32)
        elif kind == 4:
            arrays[name] = array.astype(rng.choice(("f2", "f8", "i8", "u1", "?", "c8")))
        elif kind == 5:
            arrays[name] = np.full_like(array, rng.choice((np.nan, np.inf, 1e38, -0.0)))
        else:
            arrays |= {f"{name}.{i}": array[:0] for i in range(rng.choice((3, 3000, 11_000)))}
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def _sound(place: Path, rng: random.Random, _) -> Path:
    """A sound file whose arrays are none of a model."""
    from safetensors.numpy import save_file

    arrays = _ill_arrays(rng)
    if rng.random() < 0.5:
        save_file(arrays, place / "model.safetensors")
    else:
        (place / "weights.npz").write_bytes(packed({f"{name}.npy": npy(array) for name, array in arrays.items()}))
    return place


def _torch(place: Path, rng: random.Random, _) -> Path:
    arrays, path = _arrays(), place / "weights.pth"
    pickled = state_dict({name: array.shape for name, array in arrays.items()})
    entries = {"a/data.pkl": pickled} | {f"a/data/{i}": array.tobytes() for i, array in enumerate(arrays.values())}
    if rng.random() < 0.6:
        entries["a/data.pkl"] = ill_pickle(pickled, rng)
        path.write_bytes(packed(entries))
    else:
        path.write_bytes(ill_archive(packed(entries), rng))
    return path


def _legacy_torch(place: Path, rng: random.Random, _) -> Path:
    arrays, path = _arrays(), place / "weights.pth"
    head = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}."
    pickled = state_dict({name: array.shape for name, array in arrays.items()})
    keys = b"\x80\x02(" + b"".join(struct.pack("<cI", b"X", len(str(i))) + str(i).encode() for i in range(len(arrays)))
    if rng.random() < 0.5:
        pickled = ill_pickle(pickled, rng)
    content = head + pickled + keys + b"l."
    content += b"".join(struct.pack("<q", array.size) + array.tobytes() for array in arrays.values())
    path.write_bytes(rng.choice(damage.KINDS)(content, rng) if rng.random() < 0.6 else content)
    return path


def _npz(place: Path, rng: random.Random, _) -> Path:
    path = place / "weights.npz"
    if rng.random() < 0.5:
        path.write_bytes(packed({"a.npy": ill_npy(rng), "b.npy": ill_npy(rng)}))
    else:
        path.write_bytes(ill_archive(packed({f"{name}.npy": npy(array) for name, array in _arrays().items()}), rng))
    return path


def _safetensors(place: Path, rng: random.Random, _, name: str = "model.safetensors") -> Path:
    from safetensors.numpy import save

    content, path = save(_arrays()), place / name
    start = 8 + int.from_bytes(content[:8], "little")
    kind = rng.randrange(4)
    if kind == 0:
        path.write_bytes(rng.choice(damage.KINDS)(content, rng))
        return path
    header = json.loads(content[8:start])
    if kind == 1:
        entry = header[rng.choice(list(header))]
        entry["dtype"] = rng.choice(("F8_E4M3", "F8_E5M2", "F4", "C64", "BF16", "F16", "U8", "F64", "F99", "é"))
        text = json.dumps(header).encode()
    else:
        text = ill_text(json.dumps(header).encode(), rng)
    length = rng.choice((len(text), len(text), len(text), abs(ill_number(rng)) % 2**64))
    path.write_bytes(length.to_bytes(8, "little") + text + content[start:])
    return path


def _index(place: Path, rng: random.Random, _) -> Path:
    from safetensors.numpy import save_file

    arrays, files = _arrays(), ("a.safetensors", "b.safetensors")
    for i, file in enumerate(files):
        save_file({name: array for j, (name, array) in enumerate(arrays.items()) if j % 2 == i}, place / file)
    path = place / "model.safetensors.index.json"
    content = {"metadata": {"total_size": 1}, "weight_map": {name: files[j % 2] for j, name in enumerate(arrays)}}
    path.write_bytes(ill_text(json.dumps(content).encode(), rng))
    return path


def _config(place: Path, rng: random.Random, _) -> Path:
    """A sound file of weights beside a hostile config.json."""
    from safetensors.numpy import save_file

    save_file(_arrays(), place / "model.safetensors")
    config = {
        "num_attention_heads": 2,
        "num_frames": 2,
        "num_heads": [1, 3],
        "hidden_act": "gelu",
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
        "id2label": {str(i): name for i, name in enumerate(_NAMES)},
        "format": "vidformers",
        "sha256": {"model.safetensors": "0"},
    }
    name = rng.choice(("config.json", "preprocessor_config.json"))
    (place / name).write_bytes(ill_text(json.dumps(config).encode(), rng))
    return place


def _export(place: Path, rng: random.Random, _) -> Path:
    """An export of this library with a hostile config.json."""
    from flax import nnx
    from safetensors.numpy import save_file

    from vidformers.pretrained.assign import flatten

    shapes = flatten(nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: _make_model()(rngs=nnx.Rngs(0))))))
    arrays = {".".join(map(str, path)): np.zeros(leaf.shape, np.float32) for path, leaf in shapes.items()}
    save_file(arrays, place / "model.safetensors")
    config = {"format": "vidformers", "model": {"name": "vit", "positions": "joint", "size": "Ti", **_MODEL}}
    config["id2label"] = {str(i): name for i, name in enumerate(_NAMES)}
    (place / "config.json").write_bytes(ill_text(json.dumps(config).encode(), rng))
    return place


def _flax(place: Path, rng: random.Random, _) -> Path:
    def array(value) -> msgpack.ExtType:
        return msgpack.ExtType(1, msgpack.packb((value.shape, value.dtype.name, value.tobytes())))

    def ill(rng):
        kind = rng.randrange(4)
        if kind == 0:
            return msgpack.ExtType(rng.randrange(5), rng.choice((b"", rng.randbytes(9), _growing_msgpack(rng))))
        if kind == 1:
            shape = [rng.choice((0, 1, 4, 2**63 - 1, -1)) for _ in range(rng.choice((0, 1, 2, 50)))]
            name = rng.choice(
                ("float32", "object", "float8_e4m3fn", "bfloat16", "V9", "(9999999,9999)f4", "float8_x", "")
            )
            return msgpack.ExtType(1, msgpack.packb((shape, name, bytes(16))))
        if kind == 2:
            pieces = {str(i): array(np.ones(3, np.float32)) for i in range(rng.randrange(4))}
            return {"__msgpack_chunked_array__": True, "shape": {"0": rng.choice((3, 9, -1))}, "chunks": pieces}
        value = ill_value(rng)
        return value if not isinstance(value, int) or abs(value) < 2**63 else 2**63

    tree = {"params": {name: array(value) for name, value in _arrays().items()}, "step": 3}
    path, kind = place / "checkpoint", rng.randrange(3)
    if kind == 0:
        path.write_bytes(b"\x81\xa6params" + _growing_msgpack(rng))
        return path
    try:
        content = msgpack.packb(change_tree(tree, rng, ill) if kind == 1 else tree, unicode_errors="surrogatepass")
    except (ValueError, OverflowError):  # an ill value that msgpack does not write
        content = msgpack.packb(tree)
    path.write_bytes(content if kind == 1 else rng.choice(damage.KINDS)(content, rng))
    return path


def _growing_msgpack(rng: random.Random) -> bytes:
    """Returns values of msgpack that are larger in memory, or of declared lengths that are not there."""
    size = rng.choice((100, 1000, 1_000_000))
    kind = rng.randrange(4)
    if kind == 0:
        return (b"\xdd" + struct.pack(">I", size)) * rng.choice((1, 400, 2000))
    if kind == 1:
        return b"\xdd" + struct.pack(">I", size) + rng.choice((b"\x90", b"\x80", b"\xa1a", b"\xc0")) * size
    if kind == 2:
        return rng.choice((b"\xdf", b"\xdb", b"\xc6", b"\xc9")) + struct.pack(">I", rng.choice((2**32 - 1, size)))
    data = b"\xc0"
    for _ in range(rng.choice((10, 2000))):  # extensions within each other
        data = b"\xc9" + struct.pack(">IB", len(data), 1) + data
    return data


def _orbax(place: Path, rng: random.Random, folder: Path) -> Path:
    path = place / "checkpoint"
    shutil.copytree(folder / f"orbax-{rng.random() < 0.5}", path)
    for _ in range(rng.randrange(1, 3)):
        files = sorted(file for file in path.rglob("*") if file.is_file())
        file = rng.choice(files)
        content, kind = file.read_bytes(), rng.randrange(4)
        if kind == 0:
            _replace_by_no_file(file, rng)
        elif kind == 1 or not content.startswith(b"{"):
            file.write_bytes(rng.choice(damage.KINDS)(content, rng))
        else:
            file.write_bytes(ill_text(content, rng))
    return path


def _no_file(place: Path, rng: random.Random, _) -> Path:
    """Something else than a file under the name of the weights, of the config or of a file in an index."""
    path = rng.choice((_safetensors, _npz, _torch, _flax, _index, _config))(place, random.Random(rng.random()), _)
    _replace_by_no_file(rng.choice(sorted(place.iterdir())), rng)
    return rng.choice((path, place))


def _replace_by_no_file(path: Path, rng: random.Random) -> None:
    path.unlink()
    kind = rng.randrange(6)
    if kind == 0:
        os.mkfifo(path)
    elif kind == 1:
        path.mkdir()
    elif kind == 2:
        path.symlink_to(rng.choice(("/dev/zero", "/dev/stdin", "/dev/tty", path.name, "missing", "/")))
    elif kind == 3:
        here = os.open(path.parent, os.O_RDONLY)  # the path of a socket may have 107 bytes
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(f"/proc/self/fd/{here}/{path.name}")
        os.close(here)
    elif kind == 4:
        path.write_bytes(b"")
    else:
        with open(path, "wb") as file:
            file.truncate(rng.choice((1, 2**20, 2**27)))


SETS = {
    "torch": _torch,
    "legacy torch": _legacy_torch,
    "npz": _npz,
    "safetensors": _safetensors,
    "index": _index,
    "config": _config,
    "export": _export,
    "flax": _flax,
    "orbax": _orbax,
    "no file": _no_file,
    "sound": _sound,
}
